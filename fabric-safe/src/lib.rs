//! Safe libfabric objects: no unsafe needed by their users
