//! Where the picture of a violation goes. It never replaces the history, nor a file that is no such picture, and where it cannot be
//! drawn the verdict is told all the same.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tetrachord_checker::{Counterexample, report};

/// A place for a picture, or why there is none.
pub(crate) type Place = Result<PathBuf, String>;

/// Where the picture of a violation of this history goes: to the place that was asked for, or beside the history. An error if that
/// is the history itself.
pub(crate) fn place(history: &Path, asked: Option<&Path>) -> anyhow::Result<Place> {
    if let Some(asked) = asked {
        anyhow::ensure!(!is_same(history, asked), "--report {} is the history", asked.display());
        return Ok(Ok(asked.to_path_buf()));
    }
    if !history.is_file() {
        return Ok(Err(
            "the history is no file that it could be put beside; say where with --report".to_string()
        ));
    }
    let endings = ["html", "violation.html"].map(|ending| history.with_extension(ending));
    let free = endings.iter().find(|place| !is_same(history, place));
    Ok(match free {
        Some(place) if is_somebodys(place) => {
            let place = place.display();
            Err(format!("{place} is there and is no such picture; say where with --report"))
        }
        Some(place) => Ok(place.clone()),
        None => Err("the history has its name; say where with --report".to_string()),
    })
}

/// Draws what cannot be explained.
pub(crate) fn draw(example: &Counterexample, place: Place) -> Place {
    let place = place?;
    let page = report::html(example, "Tetrachord: not linearizable");
    match fs::write(&place, page) {
        Ok(()) => Ok(place),
        Err(error) => Err(format!("cannot write {}: {error}", place.display())),
    }
}

/// Whether both are names of one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Whether something is there that is not a picture of ours.
fn is_somebodys(place: &Path) -> bool {
    let mut head = Vec::new();
    match fs::File::open(place) {
        Ok(file) => {
            let read = file.take(200).read_to_end(&mut head);
            read.is_err() || !String::from_utf8_lossy(&head).contains(report::MARK)
        }
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
