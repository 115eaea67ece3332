"""The dialect `sca`: time-aligned full duplex."""
