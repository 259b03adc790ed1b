//! A folder of data has one owner at a time.
//!
//! The lock is one of the kernel (`flock`) on a file in the folder, so it ends with whoever has it, whatever ended that process. A
//! private server gets the locked file as its standard input: its folder stays taken for as long as the server itself lives, also
//! where the process that started it was killed and the server was not.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

/// Longest note that is read.
const NOTE_BYTES: u64 = 1024;

/// What came of an attempt to take a folder.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is ours, until the file is closed everywhere.
    Ours(File),
    /// Somebody has it, and left this note.
    Theirs(String),
}

/// Takes the folder, under a lock of this name, and leaves a note for whoever comes while it is taken.
pub(crate) fn take(folder: &Path, name: &str, note: &str) -> io::Result<Taken> {
    let path = folder.join(name);
    let mut file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            file.write_all(note.as_bytes())?;
            // A server reads nothing from its standard input.
            file.seek(SeekFrom::End(0))?;
            Ok(Taken::Ours(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut note = String::new();
            file.take(NOTE_BYTES).read_to_string(&mut note)?;
            Ok(Taken::Theirs(note.trim().to_owned()))
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_until_the_last_handle_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let Taken::Ours(first) = take(folder.path(), "lock", "process 7").unwrap() else { panic!("taken") };
        let Taken::Theirs(note) = take(folder.path(), "lock", "process 8").unwrap() else { panic!("ours") };
        assert_eq!(note, "process 7");
        let inherited = first.try_clone().unwrap();
        drop(first);
        assert!(matches!(take(folder.path(), "lock", "process 8").unwrap(), Taken::Theirs(_)));
        drop(inherited);
        assert!(matches!(take(folder.path(), "lock", "process 8").unwrap(), Taken::Ours(_)));
    }
}
