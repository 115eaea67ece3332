"""The dialect `sca`: time-aligned duplex."""
