//! EFA cards in software, under an unmodified libfabric efa provider, for tests
