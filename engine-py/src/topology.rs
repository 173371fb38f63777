//! Which NICs are near which memory, as Mooncake prints it.

use efa_mr::Topology;
use efa_mr::topology::Filter;

/// Mooncake's priority matrix of this machine, in JSON; only with the NICs that `names` lists, if it lists any.
///
/// # Errors
/// What could not be read, in words.
pub(crate) fn priority_matrix(names: &str) -> Result<String, String> {
    let filter: Filter = names.parse().map_err(|error: efa_mr::topology::BadFilter| error.to_string())?;
    let topology = Topology::of_this_machine().map_err(|error| error.to_string())?;
    Ok(topology.filtered(&filter).matrix().to_json())
}
