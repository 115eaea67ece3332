"""The contract between engine and bridge: controls, events and error codes, as data free of torch and of Triton."""
