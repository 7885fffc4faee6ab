//! Which process drives a job, and whether it is still there.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// A process, named so that another one can tell whether it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Who runs it, as the system calls them.
    pub user: String,
    /// The machine.
    pub host: String,
    /// Its number there.
    pub pid: u32,
    /// Identifies the machine since it was started and the space in which `pid` counts; `None`
    /// where the system does not tell.
    pub space: Option<String>,
    /// When it was started, in the system's own unit: numbers are used again.
    pub started: Option<u64>,
}

impl Process {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self {
            user: variable(&["USER", "LOGNAME", "USERNAME"])
                .or_else(owner)
                .unwrap_or_else(|| "unknown".into()),
            host: read("/proc/sys/kernel/hostname")
                .or_else(|| variable(&["HOSTNAME", "COMPUTERNAME"]))
                .unwrap_or_else(|| "unknown".into()),
            pid,
            space: space(),
            started: started(pid),
        }
    }

    /// Whether it is this process.
    pub fn is_this(&self) -> bool {
        self.pid == std::process::id() && *self == Self::current()
    }

    /// Whether it is known to be gone: it ran on this machine, and runs no more. Nothing can be
    /// said of a process of another machine.
    pub fn is_gone(&self) -> bool {
        match (&self.space, space()) {
            (Some(theirs), Some(ours)) if *theirs == ours => started(self.pid) != self.started,
            _ => false,
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {} on {}", self.pid, self.user, self.host)
    }
}

fn variable(names: &[&str]) -> Option<String> {
    names
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|value| !value.is_empty())
}

/// The owner of this process, where the environment does not name one.
fn owner() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uid = uid.split_whitespace().next()?;
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_string())
    });
    Some(named.unwrap_or_else(|| format!("user {uid}")))
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_string())
}

/// Containers of one machine share its boot, but each counts its own processes.
fn space() -> Option<String> {
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let processes = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{boot}/{}", processes.display()))
}

/// When the process of that number was started, in clock ticks since the machine was; `None`
/// if there is none, or the system does not tell.
fn started(pid: u32) -> Option<u64> {
    /// Its place among the fields that follow the name, which is in parentheses and may hold anything.
    const START_TIME: usize = 19;
    const STATE: usize = 0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // A zombie has ended; only its parent has not looked yet.
    if matches!(fields.get(STATE), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(START_TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_that_has_ended_is_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process {
            pid: child.id(),
            started: started(child.id()),
            ..Process::current()
        };
        assert!(!process.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.is_gone());
        assert!(!Process::current().is_gone());
    }

    #[test]
    fn nothing_is_said_of_other_machines() {
        let elsewhere = Process {
            space: Some("another".into()),
            pid: 1,
            started: Some(0),
            ..Process::current()
        };
        assert!(!elsewhere.is_gone());
        let unknown = Process {
            space: None,
            ..elsewhere
        };
        assert!(!unknown.is_gone());
    }
}
