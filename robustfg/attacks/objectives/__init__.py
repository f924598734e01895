"""What an attack maximises: functions of the model's output and the label, ``(B,)``."""
