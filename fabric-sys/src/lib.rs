//! Raw libfabric ABI, found and opened at run time
