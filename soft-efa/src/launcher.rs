//! Starting programs on software cards.

use crate::control;
use crate::error::Error;
use crate::libraries::Libraries;
use crate::profile::Profile;
use crate::scratch::Scratch;
use crate::settings;
use crate::sysfs;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

/// The efa provider's switch for its shared memory.
const SHM: &str = "FI_EFA_ENABLE_SHM_TRANSFER";

/// A set of software cards that several processes can share: one simulated network.
///
/// Dropping it removes everything that the run has made. Processes that still run then keep what they have open.
#[derive(Debug)]
pub struct Network {
    scratch: Scratch,
    libraries: Libraries,
    settings: Vec<(OsString, OsString)>,
    redirect: bool,
}

impl Network {
    /// A network of hosts with `nics` cards each, of one profile. Builds the libraries if need be.
    ///
    /// # Errors
    /// When the libraries cannot be built or the run's directory cannot be made.
    pub fn new(nics: usize, profile: Profile) -> Result<Network, Error> {
        let libraries = Libraries::build()?;
        let scratch = Scratch::new()?;
        control::serve(scratch.dir())?;
        sysfs::build(scratch.dir(), &profile, nics).map_err(|error| Error::Io {
            what: format!("make a sysfs below {}", scratch.dir().display()),
            error,
        })?;
        let mut network = Network { scratch, libraries, settings: Vec::new(), redirect: true };
        let dir = network.dir().to_path_buf();
        network.set(settings::DIR, &dir);
        network.set(settings::NICS, nics.to_string());
        network.set(settings::PROFILE, profile.name);
        Ok(network)
    }

    /// Sets one of the variables of [`settings`] for all programs started from now on.
    pub fn set(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Network {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.into(), value.as_ref().into()));
        self
    }

    /// The seed of this run: the one that was [`set`](Network::set), or that of the environment, or 1. Worth a place in every failure
    /// message, because the same seed shuffles requests and throws dice for faults in the same way.
    pub fn seed(&self) -> String {
        let set = self.settings.iter().find(|(name, _)| name == settings::SEED);
        let inherited = || std::env::var(settings::SEED).ok();
        set.map(|(_, value)| value.to_string_lossy().into_owned())
            .or_else(inherited)
            .unwrap_or_else(|| "1".into())
    }

    /// Whether programs see the cards under /sys/class/infiniband and /dev/infiniband too (by a preload library). On by default.
    pub fn redirect(&mut self, on: bool) -> &mut Network {
        self.redirect = on;
        self
    }

    /// The run's directory.
    pub fn dir(&self) -> &Path {
        self.scratch.dir()
    }

    /// Sends a command to the control socket: a fault [rule](crate::rules), `clear`, `list`, `counters` …
    ///
    /// # Errors
    /// [`Error::Control`] when it was refused.
    pub fn control(&self, line: &str) -> Result<String, Error> {
        control::command(self.dir(), line)
    }

    /// A command that runs `program` on the cards. What it inherits of `LD_LIBRARY_PATH` and `LD_PRELOAD` stays, after ours.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.prepare(&mut command);
        command
    }

    /// Makes an existing command run on the cards.
    pub fn prepare(&self, command: &mut Command) {
        let inherited = |name: &str| {
            let set = command.get_envs().find(|(known, _)| *known == OsStr::new(name));
            match set {
                Some((_, value)) => value.map(OsStr::to_os_string),
                None => std::env::var_os(name),
            }
        };
        let joined = |first: &OsStr, name: &str| {
            let mut list = first.to_os_string();
            if let Some(rest) = inherited(name).filter(|rest| !rest.is_empty()) {
                list.push(":");
                list.push(rest);
            }
            list
        };
        let library_path = joined(self.libraries.dir().as_os_str(), "LD_LIBRARY_PATH");
        let shm_is_set = inherited(SHM).is_some();
        let preload = joined(self.libraries.redirect().as_os_str(), "LD_PRELOAD");
        command.env("LD_LIBRARY_PATH", library_path);
        if self.redirect {
            command.env("LD_PRELOAD", preload);
        }
        command.env("SYSFS_PATH", sysfs::root(self.dir()));
        // The provider's shared memory between processes of one host is not what is tested here, and leaves files in /dev/shm when a
        // process is killed. Whoever wants it says so.
        if !shm_is_set {
            command.env(SHM, "0");
        }
        for (name, value) in &self.settings {
            command.env(name, value);
        }
    }
}
