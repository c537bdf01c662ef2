"""The embedded data set: recorded human motion, rendered."""
