//! The house: which file of a crate may know of which. Imports point one way, so that no two files, and
//! no two folders, know of each other.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who imports whom: the names of modules as paths (`["disk", "area"]`).
type Module = Vec<String>;
type Imports<K> = BTreeMap<K, BTreeSet<K>>;

const CORE: &str = "native/codex_files/src";
const BOUNDARY: &str = "native/codex_files_nif/src";
const FUZZER: &str = "fuzz/fuzz_targets/operations";

#[test]
fn imports_of_files_make_no_circle() {
    for krate in [CORE, BOUNDARY, FUZZER] {
        let imports = imports_of(krate);
        assert!(imports.len() > 5, "{krate} has been read");
        assert_eq!(circle(&imports), None, "a circle of files in {krate}");
    }
}

#[test]
fn imports_of_folders_make_no_circle() {
    for krate in [CORE, BOUNDARY] {
        let mut rooms: Imports<String> = BTreeMap::new();
        for (from, to) in imports_of(krate) {
            let Some(room) = from.first() else { continue };
            let known = rooms.entry(room.clone()).or_default();
            known.extend(to.iter().filter_map(|module| module.first().cloned()));
            known.remove(room);
        }
        assert_eq!(circle(&rooms), None, "a circle of folders in {krate}");
    }
}

#[test]
fn what_is_pure_and_what_touches_the_disk_know_nothing_of_each_other() {
    for (from, to) in imports_of(CORE) {
        let forbidden: &[&str] = match from.first().map(String::as_str) {
            Some("manifest") => &["disk", "threads", "registry", "recognition", "space"],
            Some("disk") => &["manifest", "threads", "registry", "recognition", "space"],
            Some("threads") => &["manifest", "disk", "registry", "recognition", "space"],
            _ => &[],
        };
        let seen = to.iter().filter_map(|module| module.first());
        for room in seen {
            assert!(!forbidden.contains(&&**room), "{from:?} knows of {room}");
        }
    }
}

#[test]
fn circles_are_found() {
    let imports = |pairs: &[(&str, &str)]| {
        let mut imports: Imports<String> = BTreeMap::new();
        for (from, to) in pairs {
            let (from, to) = (from.to_string(), to.to_string());
            imports.entry(from).or_default().insert(to);
        }
        imports
    };
    assert_eq!(
        circle(&imports(&[("a", "b"), ("b", "c"), ("a", "c")])),
        None
    );
    assert!(circle(&imports(&[("a", "b"), ("b", "c"), ("c", "b")])).is_some());
    let used = used_modules(
        "use super::{b, c::{d, E}};\nuse crate::x::y;\n",
        &path("a::f"),
    );
    assert_eq!(used, ["a::b", "a::c::d", "a::c::E", "x::y"].map(path));
}

fn path(text: &str) -> Module {
    text.split("::").map(str::to_owned).collect()
}

fn imports_of(krate: &str) -> Imports<Module> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = modules_below(&root.join(krate), &Vec::new());
    files
        .iter()
        .map(|(module, file)| {
            let text = fs::read_to_string(file).unwrap();
            // The tests of a file may know what they like.
            let code = text.split("#[cfg(test)]\nmod").next().unwrap();
            let used = used_modules(code, module)
                .into_iter()
                .map(|used| file_of(used, &files))
                .filter(|used| used != module);
            (module.clone(), used.collect())
        })
        .collect()
}

fn modules_below(dir: &Path, module: &Module) -> BTreeMap<Module, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut inner = module.clone();
        match path.file_stem().unwrap().to_str().unwrap() {
            "lib" | "main" | "mod" => {}
            name => inner.push(name.to_owned()),
        }
        if path.is_dir() {
            found.append(&mut modules_below(&path, &inner));
        } else {
            found.insert(inner, path);
        }
    }
    found
}

/// The file that a path of the crate leads to: what comes after it is an item in the file.
fn file_of(mut used: Module, files: &BTreeMap<Module, PathBuf>) -> Module {
    while !files.contains_key(&used) {
        used.pop();
    }
    used
}

/// The paths of the crate that a file imports.
fn used_modules(code: &str, module: &Module) -> Vec<Module> {
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut used = Vec::new();
    let uses = code
        .split("\nuse ")
        .skip(usize::from(!code.starts_with("use ")));
    for statement in uses {
        let tree: String = statement
            .split(';')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let tree = tree.strip_prefix("use").unwrap_or(&tree);
        expand(&[], tree, &mut used);
    }
    used.into_iter()
        .filter_map(|path| match path.split_first()? {
            (root, rest) if root == "crate" => Some(rest.to_vec()),
            (root, rest) if root == "self" => Some([module, rest].concat()),
            (root, rest) if root == "super" => {
                Some([&module[..module.len().saturating_sub(1)], rest].concat())
            }
            _ => None,
        })
        .collect()
}

/// The paths of a tree such as `a::{b, c::{d, e}}`.
fn expand(prefix: &[String], tree: &str, paths: &mut Vec<Module>) {
    match tree.split_once("::") {
        Some((head, rest)) if !head.contains('{') => {
            expand(&[prefix, &[head.to_owned()]].concat(), rest, paths);
        }
        _ => match tree
            .strip_prefix('{')
            .and_then(|tree| tree.strip_suffix('}'))
        {
            Some(trees) => {
                let mut depth = 0;
                let mut start = 0;
                for (at, sign) in trees.char_indices().chain([(trees.len(), ',')]) {
                    match sign {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            expand(prefix, &trees[start..at], paths);
                            start = at + 1;
                        }
                        _ => {}
                    }
                }
            }
            None if tree == "self" => paths.push(prefix.to_vec()),
            None => paths.push([prefix, &[tree.to_owned()]].concat()),
        },
    }
}

/// Some who import each other, each the next one and the last the first.
fn circle<K: Clone + Ord>(imports: &Imports<K>) -> Option<Vec<K>> {
    fn walk<K: Clone + Ord>(
        at: &K,
        imports: &Imports<K>,
        way: &mut Vec<K>,
        done: &mut BTreeSet<K>,
    ) -> Option<Vec<K>> {
        if let Some(start) = way.iter().position(|passed| passed == at) {
            return Some(way[start..].to_vec());
        }
        if !done.insert(at.clone()) {
            return None;
        }
        way.push(at.clone());
        let found = imports
            .get(at)
            .into_iter()
            .flatten()
            .find_map(|next| walk(next, imports, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    imports
        .keys()
        .find_map(|start| walk(start, imports, &mut Vec::new(), &mut done))
}
