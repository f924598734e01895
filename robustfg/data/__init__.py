"""Data: sources, exact loaders, the built-in data sets.

>>> from robustfg import DataModule
>>> from robustfg.data.birds import Birds
>>> data = DataModule(source=Birds(), image_size=48, batch_size=16)
>>> len(data.classes)
16
"""
