"""The dialect `turn`: what the host does between the device's steps."""
