//! Makes chosen system calls fail, for tests: with the feature `fault-injection`. One plan a process at a
//! time.

#[cfg(not(feature = "fault-injection"))]
#[inline]
pub(super) fn check(_call: &'static str) -> nix::Result<()> {
    Ok(())
}

#[cfg(not(feature = "fault-injection"))]
#[inline]
pub(super) fn write_limit(wanted: usize) -> usize {
    wanted
}

#[cfg(feature = "fault-injection")]
pub use injected::{Failure, Plan, run};
#[cfg(feature = "fault-injection")]
pub(super) use injected::{check, write_limit};

#[cfg(feature = "fault-injection")]
mod injected {
    use std::sync::Mutex;

    use nix::errno::Errno;

    /// What happens to a call that fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Failure {
        /// It is not made, and gives this error.
        Error(Errno),
        /// It is not made: the process ends, and has no chance to tidy up.
        Crash,
    }

    /// Which calls fail, and how.
    #[derive(Clone, Copy, Debug)]
    pub struct Plan {
        /// The call that fails, counted from 0 over all threads.
        pub at: usize,
        /// How many calls from there on fail.
        pub times: usize,
        /// How.
        pub failure: Failure,
        /// No write takes more bytes than this at once.
        pub write_limit: usize,
        /// A call that the file system has not.
        pub without: Option<&'static str>,
    }

    static ARMED: Mutex<Option<(Plan, Vec<&'static str>)>> = Mutex::new(None);

    /// Runs `work` under a plan; its result, and the names of all calls that it made.
    pub fn run<T>(plan: Plan, work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
        *ARMED.lock().expect("not poisoned") = Some((plan, Vec::new()));
        let result = work();
        let armed = ARMED.lock().expect("not poisoned").take();
        (result, armed.map(|(_, calls)| calls).unwrap_or_default())
    }

    pub(in crate::disk) fn check(call: &'static str) -> nix::Result<()> {
        let mut armed = ARMED.lock().expect("not poisoned");
        let Some((plan, calls)) = armed.as_mut() else {
            return Ok(());
        };
        let number = calls.len();
        calls.push(call);
        if plan.without == Some(call) {
            return Err(Errno::EPERM);
        }
        if (plan.at..plan.at.saturating_add(plan.times)).contains(&number) {
            match plan.failure {
                Failure::Error(errno) => return Err(errno),
                Failure::Crash => std::process::abort(),
            }
        }
        Ok(())
    }

    pub(in crate::disk) fn write_limit(wanted: usize) -> usize {
        match ARMED.lock().expect("not poisoned").as_ref() {
            Some((plan, _)) => wanted.min(plan.write_limit.max(1)),
            None => wanted,
        }
    }
}
