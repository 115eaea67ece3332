"""The dialect `turn`: the stock checkpoint, turn by turn."""
