//! Dependencies point down only, and the promises that follow from it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::workspace::{Package, Workspace};

/// The layers from the bottom up; packages of one layer do not know each other. `xtask` stands outside: it drives cargo and
/// depends on none of them.
const LAYERS: &[&[&str]] = &[
    &["fabric-sys"],
    &["fabric-safe"],
    // It stands under libfabric itself and pulls in no layer; only its tests use fabric-safe, and those of others use it.
    &["soft-efa"],
    &["efa-mr"],
    &["efa-transport", "tcp-transport"],
    &["engine"],
    &["weft-cli", "weft-compat"],
    &["weft-capi", "weft-py"],
    &["weft-demo", "weft-soak"],
];

/// Packages that any other may use in its tests and benchmarks, and that nobody else uses.
const TOOLS: &[&str] = &["benchkit", "scripted-provider", "weft-report"];

/// A promise about everything that a package pulls in, other projects' crates included.
struct Promise {
    package: &'static str,
    features: &'static str,
    /// Beginnings of names that must not occur.
    never: &'static [&'static str],
}

const PROMISES: &[Promise] = &[
    Promise {
        package: "tcp-transport",
        features: "--all-features",
        never: &["fabric-", "ofi-libfabric-sys"],
    },
    Promise {
        package: "efa-mr",
        features: "--no-default-features",
        never: &["fabric-", "ofi-libfabric-sys", "cudarc"],
    },
    Promise {
        package: "soft-efa",
        features: "--all-features",
        never: &["fabric-", "efa-", "ofi-libfabric-sys"],
    },
    Promise {
        package: "engine",
        features: "--no-default-features",
        never: &["fabric-", "ofi-libfabric-sys", "cudarc"],
    },
    Promise {
        package: "xtask",
        features: "--all-features",
        never: &["fabric-", "efa-", "tcp-transport", "engine"],
    },
];

pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let mut wrong = arrows(&workspace.packages);
    for promise in PROMISES.iter().filter(|promise| workspace.packages.contains_key(promise.package)) {
        wrong.extend(promise.broken()?);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("\n"));
}

/// Every dependency between members that does not point down.
fn arrows(packages: &BTreeMap<String, Package>) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut wrong = Vec::new();
    for package in packages.values().filter(|package| package.name != "xtask") {
        let ours = layer(&package.name);
        if TOOLS.contains(&package.name.as_str()) {
            continue;
        }
        if ours.is_none() {
            wrong.push(format!("{} has no layer; give it one in {}", package.name, file!()));
            continue;
        }
        for dependency in
            package.dependencies.iter().filter(|dependency| packages.contains_key(&dependency.name))
        {
            let down = layer(&dependency.name) < ours && layer(&dependency.name).is_some();
            let tool = dependency.dev && TOOLS.contains(&dependency.name.as_str());
            // A crate's own tests may switch on its own features through a dependency on itself.
            let itself = dependency.dev && dependency.name == package.name;
            if !down && !tool && !itself {
                wrong.push(format!("{} depends on {}, which is not below it", package.name, dependency.name));
            }
        }
    }
    wrong
}

impl Promise {
    fn broken(&self) -> Result<Vec<String>> {
        let tree = super::cargo("tree")
            .args(["--package", self.package, self.features, "--edges", "normal,build", "--prefix", "none"])
            .args(["--format", "{p}"])
            .stdout()?;
        Ok(self.broken_by(&tree))
    }

    fn broken_by(&self, tree: &str) -> Vec<String> {
        let mut found: Vec<&str> = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| {
                *name != self.package && self.never.iter().any(|beginning| name.starts_with(beginning))
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found.iter().map(|name| format!("{} {} pulls in {name}", self.package, self.features)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn packages(arrows: &[(&str, &str, bool)]) -> BTreeMap<String, Package> {
        let mut packages = BTreeMap::new();
        for (from, to, dev) in arrows {
            packages.entry((*to).to_owned()).or_insert_with(|| Package::named(to));
            let from = packages.entry((*from).to_owned()).or_insert_with(|| Package::named(from));
            from.dependencies.push(Dependency { name: (*to).to_owned(), dev: *dev, optional: false });
        }
        packages
    }

    #[test]
    fn arrows_that_point_down_are_fine() {
        let down = packages(&[
            ("engine", "tcp-transport", false),
            ("engine", "fabric-sys", false),
            ("tcp-transport", "efa-mr", false),
            ("tcp-transport", "benchkit", true),
            ("tcp-transport", "tcp-transport", true),
            ("xtask", "benchkit", false),
            ("scripted-provider", "fabric-sys", false),
        ]);
        assert_eq!(arrows(&down), Vec::<String>::new());
    }

    #[test]
    fn arrows_that_point_up_or_sideways_are_named() {
        for (from, to, dev) in [
            ("tcp-transport", "engine", false),
            ("tcp-transport", "engine", true),
            ("tcp-transport", "efa-transport", false),
            ("engine", "benchkit", false),
            ("engine", "xtask", false),
        ] {
            let wrong = arrows(&packages(&[(from, to, dev)]));
            assert!(wrong.len() == 1 && wrong[0].contains(from) && wrong[0].contains(to), "{wrong:?}");
        }
        assert!(arrows(&packages(&[("newcomer", "engine", false)]))[0].contains("no layer"));
    }

    #[test]
    fn a_broken_promise_names_what_was_pulled_in() {
        let promise = Promise { package: "efa-mr", features: "--all-features", never: &["fabric-", "efa-"] };
        let tree = "efa-mr v0.1.0 (/x)\nthiserror v2.0.0\nfabric-safe v0.1.0\nfabric-safe v0.1.0 (*)\n";
        assert_eq!(promise.broken_by(tree), ["efa-mr --all-features pulls in fabric-safe"]);
        assert_eq!(promise.broken_by("efa-mr v0.1.0\nsoft-efa v1\n"), Vec::<String>::new());
    }
}
