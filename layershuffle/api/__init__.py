"""What a Python program can ask for, a module for each: training, evaluating, predicting and so on."""
