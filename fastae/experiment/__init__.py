"""The experiment: losses, model, augmentation, optimizer, yardsticks, and the article's figures.

What another experiment would change is here. Other packages iterate over what these modules define.
"""
