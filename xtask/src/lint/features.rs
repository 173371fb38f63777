//! Every combination of a library's features compiles, without warnings.

use anyhow::{Result, bail};

use crate::workspace::{Package, Workspace};

/// Up to this many features, every combination is checked; beyond it none, each alone, and all.
const POWERSET_UP_TO: usize = 4;

pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let mut failed = Vec::new();
    for package in
        workspace.packages.values().filter(|package| package.has_lib && !package.features.is_empty())
    {
        for set in combinations(&own_features(package)) {
            let set = set.join(",");
            let cmd = super::cargo("check").args([
                "--quiet",
                "--package",
                &package.name,
                "--no-default-features",
                "--features",
                &set,
            ]);
            let checked = super::with_linked(cmd)?.capture()?;
            // rustc's warnings go to stderr even when the result is a cached one.
            if !checked.success || checked.stderr.contains("warning: ") {
                eprint!("{}", checked.stderr);
                failed.push(format!("{} with features [{set}]", package.name));
            }
        }
    }
    if !failed.is_empty() {
        bail!("these do not compile without warnings: {}", failed.join("; "));
    }
    Ok(())
}

/// The features that can be switched independently (not `default`, which only names others).
fn own_features(package: &Package) -> Vec<&str> {
    package.features.keys().map(String::as_str).filter(|name| *name != "default").collect()
}

fn combinations<'a>(features: &[&'a str]) -> Vec<Vec<&'a str>> {
    if features.len() <= POWERSET_UP_TO {
        let subset = |bits: usize| {
            features
                .iter()
                .enumerate()
                .filter(move |(i, _)| bits >> i & 1 == 1)
                .map(|(_, name)| *name)
                .collect()
        };
        return (0..1_usize << features.len()).map(subset).collect();
    }
    let mut sets = vec![Vec::new(), features.to_vec()];
    sets.extend(features.iter().map(|feature| vec![*feature]));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_features_give_the_powerset_and_many_a_sample() {
        assert_eq!(combinations(&[]), [Vec::<&str>::new()]);
        assert_eq!(combinations(&["a", "b"]), [vec![], vec!["a"], vec!["b"], vec!["a", "b"]]);
        let many = combinations(&["a", "b", "c", "d", "e"]);
        assert_eq!(many.len(), 7);
        assert!(
            many.contains(&vec!["a", "b", "c", "d", "e"])
                && many.contains(&vec!["e"])
                && many.contains(&vec![])
        );
    }
}
