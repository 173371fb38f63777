//! x
use pyo3::prelude::*;
/// x
#[pyclass(frozen, module = "weft.mooncake")]
pub(crate) struct TransferEngine;
