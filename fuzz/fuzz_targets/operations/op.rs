//! What the fuzzer can have done.

use arbitrary::Arbitrary;

/// An operation on one of the two registries.
#[derive(Arbitrary, Debug)]
pub struct Step {
    pub of_the_second: bool,
    pub op: Op,
}

#[derive(Arbitrary, Debug)]
pub enum Op {
    /// A file under the digest of its content.
    StageFile {
        source: u8,
        name: Name,
        keep: Keep,
        /// It is glanced at before.
        glanced: bool,
    },
    /// What is in a file, from memory.
    StageData {
        source: u8,
        name: Name,
        keep: Keep,
    },
    OpenStream {
        slot: u8,
        name: Name,
        keep: Keep,
        /// It is not to be written.
        only_renews: bool,
    },
    WriteStream {
        slot: u8,
        source: u8,
        pieces: u8,
    },
    CommitStream {
        slot: u8,
    },
    AbortStream {
        slot: u8,
        by_caller: bool,
    },
    /// A file under a key and at a destination of the caller's.
    StageAt {
        source: u8,
        key: Key,
        life: Life,
        /// How many bytes too many the caller says that there are.
        claims: u8,
    },
    /// Somebody writes to a source.
    Write {
        source: u8,
        content: Content,
        executable: bool,
    },
    /// From now on another staging directory is asked for, or the first one again.
    StagingDir {
        other: bool,
    },
    Cleanup,
    Reset,
    Verify,
    Unstage {
        pick: u8,
    },
    Fetch {
        pick: u8,
    },
    Release {
        owner: u8,
        pick: u8,
    },
    EndOwner {
        owner: u8,
    },
    Budget {
        max: Max,
        evicts: bool,
    },
    /// Somebody removes, or overwrites, what is staged.
    Lose {
        pick: u8,
        name: u8,
        how: Loss,
    },
    /// Somebody puts a file of their own beside what is staged.
    Foreign {
        pick: u8,
        name: u8,
    },
    /// The process that answers for the registry is killed and has a successor.
    Successor,
    /// A third registry on the same directory, that starts, stages and ends.
    Neighbour {
        source: u8,
    },
}

#[derive(Arbitrary, Debug)]
pub enum Name {
    /// One of a few.
    Usual(u8),
    Odd(Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Keep {
    pub life: Life,
    pub owner: Option<u8>,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as its owner's.
    Owners,
    Expired,
    Hour,
    Day,
    Endless,
    Persistent,
}

#[derive(Arbitrary, Debug)]
pub enum Key {
    /// Any string.
    Name(u8),
    /// What the content is said to be.
    Claim,
    /// What it is not.
    FalseClaim,
}

#[derive(Arbitrary, Debug)]
pub enum Content {
    Small(Vec<u8>),
    /// Above the size from which on a copier copies.
    Large(u8),
    /// A file that was there before, and is recognised when it is staged again.
    Old(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Max {
    Any,
    Small(u8),
    Large(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Loss {
    File,
    ChecksumDir,
    Area,
    Overwritten,
    Replaced,
    /// A byte is another one, and a look does not show it.
    Spoilt,
}
