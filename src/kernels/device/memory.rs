//! The memory that the process can still allocate, according to the machine and its cgroups.
//!
//! Under Linux' default overcommit an allocation succeeds whatever memory there is, and the process is killed when it writes. So the size
//! of planned writes has to be compared with the available memory in advance.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The available memory, and its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    pub bytes: u64,
    pub bound: MemoryBound,
}

/// The bound of the available memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBound {
    /// `MemAvailable` of /proc/meminfo.
    Machine,
    /// The limit, in bytes, of a cgroup of the process.
    Cgroup { limit: u64 },
    /// The limit, in bytes, of the process' address space (`ulimit -v`).
    AddressSpace { limit: u64 },
}

impl fmt::Display for Available {
    /// Shows the bound and the available memory: `the machine has 17 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound {
            MemoryBound::Machine => write!(f, "the machine has ")?,
            MemoryBound::Cgroup { limit } => write!(
                f,
                "the process's cgroup, with a memory limit of {}, leaves ",
                size(limit)
            )?,
            MemoryBound::AddressSpace { limit } => write!(
                f,
                "the limit of {} on the process's address space (ulimit -v) leaves ",
                size(limit)
            )?,
        }
        f.write_str(&size(self.bytes))
    }
}

/// Returns a number of bytes in readable form.
pub fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 10 << 30 => format!("{} GiB", bytes >> 30),
        bytes => format!("{} MiB", bytes >> 20),
    }
}

/// Bytes that the program uses besides weights, cache and activations: code, threads, the allocator's reserve, the log. A server of the
/// pocket model uses 50 MiB of private memory, and 30 MiB of code.
pub const PROGRAM: u64 = 96 << 20;

/// Bytes of address space that are reserved and never used: stacks of threads, and the allocator's reservations.
const RESERVED: u64 = 256 << 20;

/// Returns the memory that the process can still allocate; `None` if the system does not report it.
pub fn available() -> Option<Available> {
    available_below(Path::new("/"))
}

/// Works as [`available`], with the system's files below `root`.
fn available_below(root: &Path) -> Option<Available> {
    let machine = mem_available(root).map(|bytes| Available {
        bytes,
        bound: MemoryBound::Machine,
    });
    let cgroups = cgroup_dirs(root).into_iter().filter_map(|dir| dir.left());
    let bounds = machine.into_iter().chain(cgroups);
    bounds.chain(address_space(root)).min_by_key(|it| it.bytes)
}

/// Returns the rest of the process' address space limit, if it has one.
fn address_space(root: &Path) -> Option<Available> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    // "unlimited" means no limit.
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let used = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))?;
    let used: u64 = used.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let taken = used.saturating_mul(1024).saturating_add(RESERVED);
    Some(Available {
        bytes: limit.saturating_sub(taken),
        bound: MemoryBound::AddressSpace { limit },
    })
}

fn mem_available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A cgroup that can limit the process' memory.
#[derive(Debug)]
struct Cgroup {
    dir: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy)]
enum Version {
    One,
    Two,
}

/// Returns the cgroups of the process and their ancestors. A container sees its own cgroup as the root.
fn cgroup_dirs(root: &Path) -> Vec<Cgroup> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (base, version) = match controllers {
            "" => (root.join("sys/fs/cgroup"), Version::Two),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("sys/fs/cgroup/memory"), Version::One)
            }
            _ => continue,
        };
        let inner = Path::new(path.trim_start_matches('/'));
        // Outside its namespace a path can lead out of it (`/../x`).
        let inside = !inner.components().any(|part| part.as_os_str() == "..");
        let inner = if inside { inner } else { Path::new("") };
        for ancestor in inner.ancestors() {
            found.push(Cgroup {
                dir: base.join(ancestor),
                version,
            });
        }
    }
    found
}

impl Cgroup {
    /// Returns the unused part of its limit; page cache that can be dropped is not counted as used.
    fn left(&self) -> Option<Available> {
        let (limit, usage, inactive) = match self.version {
            Version::One => (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
            Version::Two => ("memory.max", "memory.current", "inactive_file"),
        };
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).ok();
        // "max" means no limit; version 1 writes a number near 2^63.
        let limit: u64 = read(limit)?.trim().parse().ok()?;
        if limit >= 1 << 60 {
            return None;
        }
        let usage: u64 = read(usage)?.trim().parse().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let reclaimable: u64 = stat
            .lines()
            .find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok())
            .unwrap_or(0);
        Some(Available {
            bytes: limit.saturating_sub(usage.saturating_sub(reclaimable)),
            bound: MemoryBound::Cgroup { limit },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       24000000 kB\nMemFree:  100 kB\nMemAvailable:   20000 kB\n";
    const MACHINE: u64 = 20_000 << 10;

    /// Creates a system root with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn cgroup(bytes: u64, limit: u64) -> Option<Available> {
        let bound = MemoryBound::Cgroup { limit };
        Some(Available { bytes, bound })
    }

    fn machine() -> Option<Available> {
        Some(Available {
            bytes: MACHINE,
            bound: MemoryBound::Machine,
        })
    }

    #[test]
    fn a_bound_is_said_with_what_it_leaves() {
        for (bound, text) in [
            (MemoryBound::Machine, "the machine has 20 MiB"),
            (
                MemoryBound::Cgroup { limit: 700 << 20 },
                "the process's cgroup, with a memory limit of 700 MiB, leaves 20 MiB",
            ),
            (
                MemoryBound::AddressSpace { limit: 64 << 30 },
                "the limit of 64 GiB on the process's address space (ulimit -v) leaves 20 MiB",
            ),
        ] {
            let bytes = 20 << 20;
            assert_eq!(Available { bytes, bound }.to_string(), text);
        }
    }

    #[test]
    fn the_narrowest_bound_counts() {
        let meminfo = ("proc/meminfo", MEMINFO);
        let limits = |bytes: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax address space  {bytes}  unlimited  bytes\n"
            )
        };
        let (limited, unlimited) = (limits("300000000"), limits("unlimited"));
        let status = ("proc/self/status", "Name:\tx\nVmSize:\t   20000 kB\n");
        for (files, available) in [
            (vec![], None),
            (vec![meminfo], machine()),
            // Version 2, the container's own cgroup as the root.
            (
                vec![
                    meminfo,
                    ("proc/self/cgroup", "0::/\n"),
                    ("sys/fs/cgroup/memory.max", "1000\n"),
                    ("sys/fs/cgroup/memory.current", "700\n"),
                    (
                        "sys/fs/cgroup/memory.stat",
                        "anon 1\nfile 9\ninactive_file 200\n",
                    ),
                ],
                cgroup(500, 1000),
            ),
            // Version 2, with a limit on an ancestor of the process' cgroup.
            (
                vec![
                    meminfo,
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                    ("sys/fs/cgroup/a/b/memory.current", "7\n"),
                    ("sys/fs/cgroup/a/memory.max", "900\n"),
                    ("sys/fs/cgroup/a/memory.current", "1000\n"),
                ],
                cgroup(0, 900),
            ),
            // Version 1 beside other controllers.
            (
                vec![
                    meminfo,
                    ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/x\n"),
                    ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n"),
                    ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "900\n"),
                    (
                        "sys/fs/cgroup/memory/x/memory.stat",
                        "inactive_file 1\ntotal_inactive_file 400\n",
                    ),
                ],
                cgroup(500, 1000),
            ),
            // Version 1 without a limit; a cgroup outside the namespace.
            (
                vec![
                    meminfo,
                    ("proc/self/cgroup", "4:memory:/../x\n"),
                    (
                        "sys/fs/cgroup/memory/memory.limit_in_bytes",
                        "9223372036854771712\n",
                    ),
                    ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
                ],
                machine(),
            ),
            // With `ulimit -v`, and without.
            (
                vec![meminfo, status, ("proc/self/limits", limited.as_str())],
                Some(Available {
                    bytes: 300_000_000_u64.saturating_sub(RESERVED + (20_000 << 10)),
                    bound: MemoryBound::AddressSpace { limit: 300_000_000 },
                }),
            ),
            (
                vec![meminfo, status, ("proc/self/limits", unlimited.as_str())],
                machine(),
            ),
            // The machine has less than the cgroup allows.
            (
                vec![
                    meminfo,
                    ("proc/self/cgroup", "0::/\n"),
                    ("sys/fs/cgroup/memory.max", "100000000000\n"),
                    ("sys/fs/cgroup/memory.current", "7\n"),
                ],
                machine(),
            ),
        ] {
            let root = system(&files);
            assert_eq!(available_below(root.path()), available, "{files:?}");
        }
    }
}
