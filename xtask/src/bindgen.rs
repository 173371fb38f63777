//! `cargo xtask bindgen`: regenerates `fabric-sys/src/bindings.rs`, identically on every machine.
//!
//! Everything that shapes the output is pinned: the headers (Debian 13's libfabric-dev), bindgen's command line
//! program (crates.io, `--locked`), libclang (PyPI's wheel) and the pretty-printer (bindgen's own). What bindgen cannot
//! know, the types in which C passes a constant, is put right by [`retype`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::registry::{self, Pinned};
use crate::shell::{Cmd, program_exists};
use crate::workspace;

/// Regenerates fabric-sys' checked-in bindings
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only compare: fail if the checked-in file differs from what would be written
    #[arg(long)]
    check: bool,
}

const BINDGEN_VERSION: &str = "0.72.1";

/// libfabric 2.1.0, the newest in a Debian release. The headers are the same for every architecture.
const HEADERS: Pinned = Pinned {
    file: "libfabric-dev_2.1.0-1.1_amd64.deb",
    sha256: "0c827978d96c2c84bb4065d14f2cc2f6774c2145a2e6ad84dc3e7c25956abb0a",
};
const HEADERS_POOL: &str = "pool/main/libf/libfabric";

const LIBCLANG: Pinned = Pinned {
    file: "libclang-18.1.1-py2.py3-none-manylinux2010_x86_64.whl",
    sha256: "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b",
};

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "bindings are generated on x86_64 Linux");
    let target = workspace::Workspace::load()?.target_dir;
    let headers = headers(&target)?;
    let libclang = libclang(&target)?;
    let bindgen = bindgen_program(&target.join("bindgen/program"))?;

    let crate_dir = workspace::root().join("fabric-sys");
    let raw = generate(&bindgen, &libclang, &headers, &crate_dir.join("bindgen/libfabric.h"), &target)?;
    let text = retype(&raw, &all_headers(&headers.join("rdma"))?)?;
    for (file, text) in [("src/bindings.rs", &text), ("tests/fixtures/fields.rs", &fields(&raw))] {
        let path = crate_dir.join(file);
        let current = fs::read_to_string(&path).unwrap_or_default();
        if current == *text {
            println!("{} is up to date", path.display());
        } else if args.check {
            bail!("{} is not what `cargo xtask bindgen` writes", path.display());
        } else {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote {}", path.display());
        }
    }
    Ok(())
}

/// Every field of every type, as `TYPE: FIELD FIELD …;` inside a macro call: what the test of the feature `linked` compares.
fn fields(raw: &str) -> String {
    let mut types: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (ty, field) in raw.lines().filter_map(|line| {
        let (_, rest) = line.split_once("\"Offset of field: ")?;
        rest.split_once('"')?.0.split_once("::")
    }) {
        types.entry(ty).or_default().push(field);
    }
    let mut text = String::from("// Written by `cargo xtask bindgen`. Do not edit.\n\ncompare! {\n");
    for (ty, fields) in types {
        text += &format!("    {ty}: {};\n", fields.join(" "));
    }
    text + "}\n"
}

/// The include folder with `rdma/*.h` of libfabric 2.1.0; downloads and unpacks it if it is not there.
pub(crate) fn headers(target: &Path) -> Result<PathBuf> {
    let dir = target.join("bindgen/libfabric-2.1.0");
    let include = dir.join("usr/include");
    if !include.join("rdma/providers/fi_prov.h").is_file() {
        let package = registry::deb(HEADERS_POOL, &HEADERS, &target.join("downloads"))?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Cmd::new("dpkg-deb").arg("-x").arg(package).arg(&dir).run()?;
    }
    Ok(include)
}

/// The folder that holds libclang.so.
pub(crate) fn libclang(target: &Path) -> Result<PathBuf> {
    let dir = target.join("bindgen/libclang");
    let native = dir.join("libclang-18.1.1.data/platlib/clang/native");
    if !native.join("libclang.so").is_file() {
        let downloads = target.join("downloads");
        let wheel = registry::wheel("libclang==18.1.1", "manylinux2010_x86_64", &LIBCLANG, &downloads)?;
        registry::unpack_wheel(&wheel, &dir)?;
    }
    Ok(native)
}

/// bindgen's command line program, built once.
fn bindgen_program(root: &Path) -> Result<PathBuf> {
    let program = root.join("bin/bindgen");
    let wanted = format!("bindgen {BINDGEN_VERSION}");
    let is_there = || {
        let version = Cmd::new(&program).arg("--version").quiet().stdout();
        version.is_ok_and(|text| text.trim() == wanted)
    };
    if !is_there() {
        let version = format!("={BINDGEN_VERSION}");
        Cmd::cargo("install")
            .args(["--quiet", "--locked", "bindgen-cli", "--version", &version, "--root"])
            .arg(root)
            .run()?;
        ensure!(is_there(), "{} does not say that it is {wanted}", program.display());
    }
    Ok(program)
}

/// What bindgen makes of the headers, before [`retype`].
fn generate(
    bindgen: &Path,
    libclang: &Path,
    headers: &Path,
    wrapper: &Path,
    scratch: &Path,
) -> Result<String> {
    let builtin = builtin_headers()?;
    Cmd::new(bindgen)
        .env("LIBCLANG_PATH", libclang)
        .env_remove("BINDGEN_EXTRA_CLANG_ARGS")
        .arg(wrapper)
        .args(["--no-doc-comments", "--use-core", "--rust-target", "1.85", "--rust-edition", "2024"])
        .args(["--formatter", "prettyplease", "--default-enum-style", "consts", "--no-prepend-enum-name"])
        .arg("--with-derive-default")
        .args(["--ignore-functions", "--allowlist-type", "fi_.*|fid|fid_.*", "--allowlist-var", "FI_.*"])
        // C types that libc has, and what only in-tree providers and collectives use.
        .args(["--blocklist-type", "iovec|pollfd|fi_mutex_cond|fi_wait_pollfd|.*pthread.*|__atomic.*"])
        // Constants whose C type bindgen cannot see; they are written by hand in `supplement.rs`.
        .args([
            "--blocklist-item",
            "FI_SHARED_CONTEXT|FI_AV_AUTH_KEY|FI_ADDR_UNSPEC|FI_ADDR_NOTAVAIL|FI_KEY_NOTAVAIL",
        ])
        .args(["--clang-macro-fallback", "--clang-macro-fallback-build-dir"])
        .arg(scratch)
        .args(["--raw-line", "use libc::iovec;", "--"])
        .arg(format!("-I{}", headers.display()))
        .args(["-isystem", &builtin, "--target=x86_64-unknown-linux-gnu"])
        .stdout()
}

/// The folder with `stddef.h` and the like, which libclang's wheel lacks: gcc's. Installs gcc if it is not there.
pub(crate) fn builtin_headers() -> Result<String> {
    if !program_exists("gcc") || !Path::new("/usr/include/errno.h").is_file() {
        registry::apt_install(&["gcc", "libc6-dev"], "bindgen needs the C compiler's standard headers")?;
    }
    Ok(Cmd::new("gcc").arg("-print-file-name=include").quiet().stdout()?.trim().to_owned())
}

/// The text of all headers of a folder and the folders in it.
fn all_headers(dir: &Path) -> Result<String> {
    let mut text = String::new();
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for path in entries.iter().map(fs::DirEntry::path) {
        if path.is_dir() {
            text += &all_headers(&path)?;
        } else if path.extension().is_some_and(|e| e == "h") {
            text += &fs::read_to_string(&path)?;
        }
    }
    Ok(text)
}

/// The Rust type of each anonymous enum's constants, by a member: the type of the C parameter or field that takes them.
const ANONYMOUS_ENUMS: [(&str, &str); 16] = [
    ("FI_EOTHER", "::core::ffi::c_int"),             // returned by every call
    ("FI_NAME_MAX", "usize"),                        // lengths
    ("FI_FORMAT_UNSPEC", "u32"),                     // fi_info.addr_format
    ("FI_PROTO_UNSPEC", "u32"),                      // fi_ep_attr.protocol
    ("FI_TAG_BITS", "u64"),                          // fi_ep_attr.mem_tag_format
    ("FI_TC_UNSPEC", "u32"),                         // fi_tx_attr.tclass
    ("FI_CLASS_UNSPEC", "usize"),                    // fid.fclass
    ("FI_GETFIDFLAG", "::core::ffi::c_int"),         // fi_control's command
    ("FI_NOTIFY", "u32"),                            // fi_eq_read's event
    ("FI_OPT_ENDPOINT", "::core::ffi::c_int"),       // fi_setopt's level
    ("FI_OPT_MIN_MULTI_RECV", "::core::ffi::c_int"), // fi_setopt's option name
    ("FI_HMEM_P2P_ENABLED", "::core::ffi::c_int"),   // value of FI_OPT_FI_HMEM_P2P
    ("FI_OPT_EFA_RNR_RETRY", "::core::ffi::c_int"),  // fi_setopt's option name
    ("FI_EFA_MR_ATTR_RECV_IC_ID", "u16"),            // fi_efa_mr_attr.ic_id_validity
    ("FI_WAIT_NONE", "::core::ffi::c_uint"),         // named in C; here should bindgen call it anonymous
    ("FI_PARAM_STRING", "::core::ffi::c_uint"),      // the same
];

/// Gives constants the type in which C uses them, and removes the numbered names of anonymous enums.
///
/// bindgen types a macro by its value (`FI_MSG: u32`, `FI_HMEM: u64`), and an anonymous enum's constants by a type named
/// after the enum's number. Here: a macro with an `ULL` value is a flag word (u64), an errno and an MR mode bit
/// are C ints, and [`ANONYMOUS_ENUMS`] says the rest.
fn retype(raw: &str, headers: &str) -> Result<String> {
    let macros = macro_types(headers);
    let mut enums: BTreeMap<&str, &str> = BTreeMap::new();
    for line in raw.lines() {
        if let Some((name, ty, _)) = constant(line)
            && ty.starts_with("_bindgen_ty_")
            && let Some((_, rust)) = ANONYMOUS_ENUMS.iter().find(|(member, _)| *member == name)
        {
            enums.insert(ty, rust);
        }
    }
    let mut text = String::from(
        "// Written by `cargo xtask bindgen` from the headers of libfabric 2.1.0. Do not edit.\n\n",
    );
    for line in raw.lines().skip_while(|line| line.starts_with("/*") || line.is_empty()) {
        if line.starts_with("pub type _bindgen_ty_") {
            continue;
        }
        let Some((name, ty, value)) = constant(line) else {
            text += line;
            text.push('\n');
            continue;
        };
        let ty = if ty.starts_with("_bindgen_ty_") {
            enums.get(ty).with_context(|| format!("ANONYMOUS_ENUMS has no entry for the enum of {name}"))?
        } else if let Some(ty) = macros.get(name) {
            ty
        } else {
            ty
        };
        if value.starts_with('-') && ty.contains('u') && !ty.contains("c_") {
            bail!("{name} = {value} does not fit {ty}");
        }
        writeln!(text, "pub const {name}: {ty} = {value};")?;
    }
    Ok(text)
}

/// Name, type and value of a line `pub const NAME: TYPE = VALUE;`.
fn constant(line: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
    let (ty, value) = rest.strip_suffix(';')?.split_once(" = ")?;
    Some((name, ty, value))
}

/// The Rust types of the macros in the headers whose type their text shows.
fn macro_types(headers: &str) -> BTreeMap<&str, &'static str> {
    let mut types = BTreeMap::new();
    let mut aliases = BTreeSet::new();
    for line in headers.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("#define") {
            continue;
        }
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let is_errno = name.starts_with("FI_E") && value.starts_with('E');
        let is_int = name == "FI_SUCCESS" || name == "FI_ERRNO_OFFSET" || name.starts_with("FI_MR_");
        if is_errno || is_int || name.starts_with("FI_PROV_SPECIFIC_") {
            types.insert(name, "::core::ffi::c_int");
        } else if name == "FI_MPI_IGNORE_TAG"
            || name == "FI_MPI_IGNORE_PAYLOAD"
            || name.starts_with("FI_ORDER_")
        {
            types.insert(name, "u64");
        } else if value.starts_with("FI_") {
            aliases.insert((name, value));
        }
        if line.contains("ULL") {
            types.insert(name, "u64");
        }
    }
    for (name, of) in aliases {
        if let Some(ty) = types.get(of).copied() {
            types.insert(name, ty);
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_get_the_types_of_c() {
        let headers = "#define FI_MSG (1ULL << 1)\n#define FI_SEND (1ULL << 11)\n#define FI_TRANSMIT FI_SEND\n\
                       #define FI_EPERM EPERM /* no */\n#define FI_MR_LOCAL (1 << 2)\n";
        let raw = "/* made */\n\npub const FI_MSG: u32 = 2;\npub const FI_TRANSMIT: u32 = 2048;\n\
                   pub const FI_EPERM: u32 = 1;\npub const FI_MR_LOCAL: u32 = 4;\n\
                   pub const FI_EOTHER: _bindgen_ty_1 = 256;\npub type _bindgen_ty_1 = ::core::ffi::c_uint;\n\
                   pub const FI_AV_MAP: fi_av_type = 1;\n";
        let text = retype(raw, headers).unwrap();
        for wanted in [
            "FI_MSG: u64 = 2;",
            "FI_TRANSMIT: u64 = 2048;",
            "FI_EPERM: ::core::ffi::c_int = 1;",
            "FI_MR_LOCAL: ::core::ffi::c_int = 4;",
            "FI_EOTHER: ::core::ffi::c_int = 256;",
            "FI_AV_MAP: fi_av_type = 1;",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
        assert!(!text.contains("_bindgen_ty"), "{text}");
    }

    #[test]
    fn an_unknown_anonymous_enum_is_an_error_that_names_it() {
        let error = retype("pub const FI_NEW: _bindgen_ty_7 = 0;\n", "").unwrap_err().to_string();
        assert!(error.contains("FI_NEW"), "{error}");
    }
}
