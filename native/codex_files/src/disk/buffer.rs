//! Room for what is read of a file.

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// It begins with a page: the allocator's large blocks begin 16 bytes into one, where some processors
/// take four times as long to copy to.
pub(crate) struct Buffer {
    room: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn new(size: usize) -> Self {
        let mut room = vec![0; PAGE - 1 + size];
        let address = room.as_ptr().addr();
        let start = address.next_multiple_of(PAGE) - address;
        room.truncate(start + size);
        Self { room, start }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[self.start..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_size_and_begins_with_a_page() {
        for size in [0, 1, PAGE, 256 * 1024 + 1] {
            let mut buffer = Buffer::new(size);
            assert_eq!(buffer.as_ptr().addr() % PAGE, 0, "{size}");
            assert_eq!(buffer.len(), size);
            buffer.fill(1);
            assert_eq!(*buffer, vec![1; size]);
        }
    }
}
