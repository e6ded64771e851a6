//! Binaries of a caller's, kept for a thread that looks at them later. They are shared, not copied.

use codex_files::bytes::Bytes;
use codex_files::error::Result;
use rustler::env::SavedTerm;
use rustler::{Binary, OwnedEnv};

/// Some binaries, for as long as this lives.
pub(crate) struct Kept {
    env: OwnedEnv,
    binaries: SavedTerm,
}

impl Kept {
    pub(crate) fn new(binaries: &[Binary<'_>]) -> Self {
        let env = OwnedEnv::new();
        let binaries = env.save(binaries);
        Self { env, binaries }
    }
}

impl Bytes for Kept {
    fn each(&self, see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.env.run(|env| {
            let binaries: Vec<Binary<'_>> = self
                .binaries
                .load(env)
                .decode()
                .expect("they were binaries when they were saved");
            binaries.iter().try_for_each(|binary| see(binary))
        })
    }
}
