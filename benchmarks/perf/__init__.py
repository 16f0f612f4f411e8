"""What RGO costs: a step beside SGD, and consolidation, timed on this machine."""
