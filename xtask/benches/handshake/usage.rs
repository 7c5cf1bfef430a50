//! CPU time and memory as the kernel counts them (proc(5)).

use std::{fs, time::Duration};

/// CPU time that this thread has used.
pub(crate) fn own_cpu() -> Duration {
    schedstat("/proc/thread-self/schedstat")
}

/// CPU time that all threads of a process have used.
pub(crate) fn cpu(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process lives");
    tasks
        .map(|task| {
            let path = task.expect("a thread").path().join("schedstat");
            schedstat(path.to_str().expect("a path in UTF-8"))
        })
        .sum()
}

/// Resident memory of a process (`self` for ours), in bytes.
pub(crate) fn resident(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a line VmRSS");
    let kilobytes = line.split_whitespace().next().expect("a number");
    kilobytes.parse::<u64>().expect("a number") * 1024
}

fn schedstat(path: &str) -> Duration {
    // A thread that has just ended used little.
    let text = fs::read_to_string(path).unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
