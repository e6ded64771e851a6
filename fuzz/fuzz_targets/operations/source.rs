//! The files that are staged.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// From what age on a file is recognised.
const OLD: Duration = Duration::from_millis(2_100);

#[derive(Clone, Default)]
pub struct Source {
    pub path: PathBuf,
    pub content: Vec<u8>,
    pub executable: bool,
}

impl Source {
    /// Writes it as it is to be.
    pub fn write(&self) {
        fs::write(&self.path, &self.content).expect("a source");
        set_mode(&self.path, self.mode());
    }

    fn mode(&self) -> u32 {
        if self.executable { 0o700 } else { 0o600 }
    }

    fn is_there(&self) -> bool {
        let stat = fs::metadata(&self.path);
        stat.is_ok_and(|stat| stat.mode() & 0o777 == self.mode())
            && fs::read(&self.path).is_ok_and(|there| there == self.content)
    }

    fn age(&self) -> Duration {
        let stat = fs::metadata(&self.path).expect("it is there");
        let changed = stat.ctime().unsigned_abs();
        let changed = UNIX_EPOCH + Duration::new(changed, stat.ctime_nsec() as u32);
        SystemTime::now()
            .duration_since(changed)
            .unwrap_or_default()
    }
}

/// Where all files are.
pub fn base() -> PathBuf {
    std::env::var_os("FUZZ_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// One of a few files that nobody has written to for so long that they are recognised. All runs have the
/// same ones.
pub fn old(number: u8) -> Source {
    static FILES: LazyLock<Vec<Source>> = LazyLock::new(|| {
        let contents = [vec![], vec![0], vec![1; 300_001]];
        let files = contents
            .into_iter()
            .enumerate()
            .flat_map(|(number, content)| {
                [false, true].map(|executable| Source {
                    path: base().join(format!("old {number} {executable}")),
                    content: content.clone(),
                    executable,
                })
            });
        let files: Vec<_> = files.collect();
        for file in files.iter().filter(|file| !file.is_there()) {
            file.write();
        }
        while let Some(young) = files.iter().map(Source::age).find(|age| *age < OLD) {
            std::thread::sleep(OLD - young);
        }
        files
    });
    FILES[usize::from(number) % FILES.len()].clone()
}

pub fn set_mode(path: &Path, mode: u32) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
}
