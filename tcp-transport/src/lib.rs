//! One-sided reads and writes over TCP lanes, authenticated, without libfabric
