"""Engines that train on one device, on several, or on several machines."""
