//! One-sided transfers over every EFA card (or any libfabric RDM provider) at once
