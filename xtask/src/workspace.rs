//! Where things are, and what cargo knows about the packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell::Cmd;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    // xtask/ lies directly below it.
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir).to_path_buf()
}

/// The workspace as `cargo metadata` describes it, without its dependencies.
pub(crate) struct Workspace {
    /// The build directory (`CARGO_TARGET_DIR` respected).
    pub(crate) target_dir: PathBuf,
    /// The member packages, by name.
    pub(crate) packages: BTreeMap<String, Package>,
}

/// A member package.
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Published to a registry, or only of use inside this repository?
    pub(crate) publishable: bool,
    /// The features that it declares, `default` included, without those that optional dependencies imply.
    pub(crate) features: BTreeMap<String, Vec<String>>,
    /// Its dependencies.
    pub(crate) dependencies: Vec<Dependency>,
    /// Names of its benchmark targets.
    pub(crate) benches: Vec<String>,
    /// Names of its programs.
    pub(crate) bins: Vec<String>,
    /// Has it a library target?
    pub(crate) has_lib: bool,
}

/// One entry in a package's dependency tables.
pub(crate) struct Dependency {
    /// The package's name (not the name that it was renamed to).
    pub(crate) name: String,
    /// Used by tests, examples and benchmarks only?
    pub(crate) dev: bool,
    /// Only with some feature?
    pub(crate) optional: bool,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self> {
        Self::load_from(&root())
    }

    /// Asks cargo about the workspace in another folder.
    pub(crate) fn load_from(dir: &Path) -> Result<Self> {
        let json =
            Cmd::cargo("metadata").args(["--no-deps", "--format-version", "1"]).dir(dir).quiet().stdout()?;
        let json: Value = serde_json::from_str(&json).context("cargo metadata printed no JSON")?;
        let target_dir = PathBuf::from(text(&json["target_directory"]));
        let packages = list(&json["packages"]).map(Package::parse).map(|p| (p.name.clone(), p)).collect();
        Ok(Self { target_dir, packages })
    }

    /// The package of that name, or an error that lists those there are.
    pub(crate) fn package(&self, name: &str) -> Result<&Package> {
        self.packages.get(name).with_context(|| {
            let names: Vec<_> = self.packages.keys().map(String::as_str).collect();
            format!("no package `{name}` in the workspace; it has {}", names.join(", "))
        })
    }
}

impl Package {
    /// A package of which nothing but the name matters.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self::parse(&serde_json::json!({ "name": name }))
    }

    fn parse(json: &Value) -> Self {
        let features = json["features"].as_object().into_iter().flatten();
        let has_kind = |target: &Value, kind: &str| list(&target["kind"]).any(|k| text(k) == kind);
        let targets = |kind| -> Vec<String> {
            list(&json["targets"]).filter(|t| has_kind(t, kind)).map(|t| text(&t["name"])).collect()
        };
        Self {
            name: text(&json["name"]),
            version: text(&json["version"]),
            // `publish = false` is an empty list of registries; no restriction is null.
            publishable: json["publish"].as_array().is_none_or(|registries| !registries.is_empty()),
            features: features
                .map(|(name, enables)| (name.clone(), list(enables).map(text).collect::<Vec<_>>()))
                .filter(|(name, enables)| *enables != [format!("dep:{name}")])
                .collect(),
            dependencies: list(&json["dependencies"])
                .map(|d| Dependency {
                    name: text(&d["name"]),
                    dev: d["kind"] == "dev",
                    optional: d["optional"] == true,
                })
                .collect(),
            benches: targets("bench"),
            bins: targets("bin"),
            has_lib: list(&json["targets"])
                .any(|t| ["lib", "rlib", "cdylib", "staticlib"].iter().any(|kind| has_kind(t, kind))),
        }
    }
}

fn text(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn list(json: &Value) -> impl Iterator<Item = &Value> {
    json.as_array().into_iter().flatten()
}
