"""What every part rests on: types, errors, precision, files."""
