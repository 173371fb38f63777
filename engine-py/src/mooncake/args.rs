//! The arguments of Mooncake's methods; what is none of them is a TypeError, as Mooncake's callers know it.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use weft_compat::{Note, Op};

/// A number that is an address, a length or an id.
pub(crate) struct Number(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for Number {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract::<u64>().map(Self).map_err(|_| {
            let shown = object.repr().map_or_else(|_| "this object".into(), |text| text.to_string());
            PyTypeError::new_err(format!(
                "{shown} is no address, length or id (an integer from 0 to 2**64 - 1)"
            ))
        })
    }
}

/// Several of them. NumPy's integers count, too.
pub(crate) fn numbers(list: Vec<Number>) -> Vec<u64> {
    list.into_iter().map(|number| number.0).collect()
}

/// `TransferOpcode`, or a TypeError.
pub(crate) struct Opcode(pub(crate) Op);

impl<'py> FromPyObject<'_, 'py> for Opcode {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if !object.is_instance(&types(py)?.getattr("TransferOpcode")?)? {
            return Err(PyTypeError::new_err("opcode is TransferOpcode.Read or TransferOpcode.Write"));
        }
        match object.getattr("value")?.extract::<u8>()? {
            0 => Ok(Self(Op::Read)),
            _ => Ok(Self(Op::Write)),
        }
    }
}

/// `TransferNotify`, or a TypeError.
pub(crate) struct Notify(pub(crate) Note);

impl<'py> FromPyObject<'_, 'py> for Notify {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if !object.is_instance(&types(py)?.getattr("TransferNotify")?)? {
            return Err(PyTypeError::new_err("notify is a TransferNotify(name, msg)"));
        }
        let text = |name: &str| object.getattr(name)?.extract::<String>();
        Ok(Self(Note { name: text("name")?, message: text("msg")? }))
    }
}

/// Where the Python half's classes are.
pub(crate) fn types(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let import = || py.import("weft.mooncake._types").map(Bound::unbind);
    Ok(MODULE.get_or_try_init(py, import)?.bind(py))
}
