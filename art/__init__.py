"""Action-Region Tracking for fine-grained video action recognition, after the ART paper."""
