//! The import graph of `shared/`: no cycle between files, none between top-level modules.
//!
//! An edge goes from a file to the file that *defines* what it names. A re-export from the file's own top-level module is no
//! edge, unless the file uses the name as well; a re-export from another one is. Code under `#[cfg(test)]` does not count.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    fs,
    path::Path,
};

use crate::lexer::{Token, tokens};

/// A module path from the crate root: `["postgres", "pool"]`.
type ModulePath = Vec<String>;

#[derive(Debug, Default)]
struct Module {
    file: String,
    items: BTreeSet<String>,
    /// Imported names, whether re-exported or not: descendants see the private ones too.
    imports: BTreeMap<String, Import>,
    globs: Vec<Vec<String>>,
    /// Paths of more than one segment that occur in the code.
    paths: BTreeSet<Vec<String>>,
    /// Single names that occur in the code, outside of imports.
    names: BTreeSet<String>,
}

#[derive(Debug)]
struct Import {
    path: Vec<String>,
    /// `pub use`. It makes no edge within a top-level module, unless the file uses the name itself.
    is_public: bool,
}

#[derive(Debug, Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// From file (or module) to file (or module), with one path that makes the edge.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

impl Crate {
    /// Reads the crate from its root file on. `read` returns the text of a file by its path below the root.
    fn load(read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut loaded = Self::default();
        let mut queue = VecDeque::from([(ModulePath::new(), "lib.rs".to_owned())]);
        while let Some((path, file)) = queue.pop_front() {
            let Some(source) = read(&file) else { panic!("module {} has no file {file}", path.join("::")) };
            for child in Parser::parse(&mut loaded, &path, &file, &source) {
                let folder = child.join("/");
                let candidates = [format!("{folder}.rs"), format!("{folder}/mod.rs")];
                let file = candidates.into_iter().find(|file| read(file).is_some());
                queue.push_back((child, file.unwrap_or(format!("{folder}.rs"))));
            }
        }
        loaded
    }

    fn files(&self) -> Graph {
        let mut graph = Graph::new();
        for (path, module) in &self.modules {
            let imported = module
                .imports
                .iter()
                .map(|(name, import)| (&import.path, false, import.is_public && !module.names.contains(name)));
            let named = imported.chain(module.paths.iter().map(|path| (path, false, false)));
            for (named, is_glob, is_only_re_export) in named.chain(module.globs.iter().map(|path| (path, true, false)))
            {
                let target = match self.resolve(path, named, &mut BTreeSet::new()) {
                    Some(Target::Item(file)) => file,
                    Some(Target::Module(target)) if is_glob => self.modules[&target].file.clone(),
                    _ => continue,
                };
                let is_exempt = is_only_re_export && top_level_module(&target) == top_level_module(&module.file);
                if target != module.file && !is_exempt {
                    let edges = graph.entry(module.file.clone()).or_default();
                    edges.entry(target).or_insert_with(|| named.join("::"));
                }
            }
        }
        graph
    }

    /// Finds what a path in a module names; `None` for items of other crates.
    fn resolve(
        &self,
        from: &ModulePath,
        path: &[String],
        seen: &mut BTreeSet<(ModulePath, Vec<String>)>,
    ) -> Option<Target> {
        // An import that shadows its own crate would be followed for ever.
        if seen.len() > 64 || !seen.insert((from.clone(), path.to_vec())) {
            return None;
        }
        let mut module = from.clone();
        let mut rest = path;
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "crate" => module.clear(),
                "self" => {}
                "super" => drop(module.pop()?),
                _ => break,
            }
            rest = others;
        }
        let is_anchored = rest.len() < path.len();
        while let Some((name, others)) = rest.split_first() {
            let child: ModulePath = module.iter().chain([name]).cloned().collect();
            let here = self.modules.get(&module)?;
            if self.modules.contains_key(&child) {
                module = child;
            } else if here.items.contains(name) {
                return Some(Target::Item(here.file.clone()));
            } else if let Some(import) = here.imports.get(name).filter(|import| import.path != path || from != &module)
            {
                let full: Vec<String> = import.path.iter().chain(others).cloned().collect();
                return self.resolve(&module, &full, seen);
            } else {
                let through = |glob: &Vec<String>| {
                    let full: Vec<String> = glob.iter().chain(rest).cloned().collect();
                    self.resolve(&module, &full, &mut seen.clone())
                };
                let found = here.globs.iter().find_map(through);
                // Defined by a macro or `include!`.
                let generated = || is_anchored.then(|| Target::Item(here.file.clone()));
                return found.or_else(generated);
            }
            rest = others;
        }
        Some(Target::Module(module))
    }
}

enum Target {
    /// The file that defines the item.
    Item(String),
    Module(ModulePath),
}

/// Collects the items, imports and paths of one file.
struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The module at each level of braces; `None` inside of functions, types and the like.
    scopes: Vec<Option<ModulePath>>,
    module: ModulePath,
}

impl Parser<'_> {
    /// Adds the modules of a file to the crate, and returns those that have files of their own.
    fn parse(loaded: &mut Crate, path: &ModulePath, file: &str, source: &str) -> Vec<ModulePath> {
        let tokens = tokens(source);
        let mut parser = Parser { tokens: &tokens, at: 0, scopes: Vec::new(), module: path.clone() };
        let mut children = Vec::new();
        loaded.modules.insert(path.clone(), Module { file: file.to_owned(), ..Module::default() });
        while let Some(token) = parser.next() {
            let is_module_level = parser.scopes.last().is_none_or(Option::is_some);
            let module = parser.module.clone();
            match token {
                Token::Punct('#') => parser.attribute(),
                Token::Punct('{') => parser.scopes.push(None),
                Token::Punct('}') => {
                    if let Some(Some(_)) = parser.scopes.pop() {
                        parser.module.pop();
                    }
                }
                Token::Ident(word) => match word.as_str() {
                    "use" => {
                        let is_public = parser.is_public();
                        let mut imports = Vec::new();
                        parser.use_tree(&mut Vec::new(), &mut imports);
                        let entry = loaded.modules.get_mut(&module).unwrap();
                        for (name, path) in imports {
                            match name {
                                None => entry.globs.push(path),
                                // An import inside of a function binds nothing in the module.
                                Some(_) if !is_module_level => drop(entry.paths.insert(path)),
                                Some(name) if name == "_" => drop(entry.paths.insert(path)),
                                Some(name) => drop(entry.imports.insert(name, Import { path, is_public })),
                            }
                        }
                    }
                    "mod" if is_module_level && parser.peek_ident().is_some() => {
                        let name = parser.next_ident();
                        let child: ModulePath = module.iter().cloned().chain([name]).collect();
                        if parser.peek() == Some(&Token::Punct('{')) {
                            parser.at += 1;
                            parser.scopes.push(Some(child.clone()));
                            parser.module.clone_from(&child);
                            loaded.modules.insert(child, Module { file: file.to_owned(), ..Module::default() });
                        } else {
                            children.push(child);
                        }
                    }
                    "struct" | "enum" | "trait" | "fn" | "const" | "static" | "type" | "union" if is_module_level => {
                        if let Some(name) = parser.peek_ident().map(str::to_owned)
                            && !matches!(name.as_str(), "fn" | "unsafe" | "async" | "extern")
                        {
                            parser.at += 1;
                            let name = if name == "mut" { parser.next_ident() } else { name };
                            loaded.modules.get_mut(&module).unwrap().items.insert(name);
                        }
                    }
                    _ if parser.peek() == Some(&Token::Path) => {
                        let path = parser.path(word.clone());
                        let entry = loaded.modules.get_mut(&module).unwrap();
                        entry.names.insert(word);
                        entry.paths.insert(path);
                    }
                    _ => drop(loaded.modules.get_mut(&module).unwrap().names.insert(word)),
                },
                // A path of another crate (`::std::…`), or of what stands before, such as `<T>::new`.
                Token::Path => {
                    while matches!(parser.peek(), Some(Token::Ident(_) | Token::Path)) {
                        parser.at += 1;
                    }
                }
                Token::Punct(_) => {}
            }
        }
        children
    }

    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn peek_ident(&self) -> Option<&str> {
        self.peek().and_then(Token::ident)
    }

    fn next_ident(&mut self) -> String {
        self.next().and_then(|token| token.ident().map(str::to_owned)).unwrap_or_default()
    }

    /// Whether `pub` or `pub(…)` stands before the word that has been read.
    fn is_public(&self) -> bool {
        let before = &self.tokens[..self.at - 1];
        let visibility = match before.last() {
            Some(Token::Punct(')')) => {
                before.iter().rposition(|token| *token == Token::Punct('(')).map_or(&before[..0], |at| &before[..at])
            }
            _ => before,
        };
        visibility.last().and_then(Token::ident) == Some("pub")
    }

    /// A path whose first segment has been read.
    fn path(&mut self, first: String) -> Vec<String> {
        let mut path = vec![first];
        while self.peek() == Some(&Token::Path) && matches!(self.tokens.get(self.at + 1), Some(Token::Ident(_))) {
            self.at += 1;
            path.push(self.next_ident());
        }
        path
    }

    /// `a::{b, c as d, e::*}` up to its `;`, `,` or `}`, as names and full paths; a glob has no name.
    fn use_tree(&mut self, prefix: &mut Vec<String>, imports: &mut Vec<(Option<String>, Vec<String>)>) {
        let depth = prefix.len();
        loop {
            match self.next() {
                Some(Token::Ident(name)) if name == "as" => {
                    let alias = self.next_ident();
                    imports.push((Some(alias), prefix.clone()));
                    prefix.truncate(depth);
                    self.skip_to_end_of_branch();
                    return;
                }
                Some(Token::Ident(name)) => prefix.push(name),
                Some(Token::Path) => {}
                Some(Token::Punct('*')) => {
                    imports.push((None, prefix.clone()));
                    prefix.truncate(depth);
                    self.skip_to_end_of_branch();
                    return;
                }
                Some(Token::Punct('{')) => {
                    while !matches!(self.peek(), Some(Token::Punct('}')) | None) {
                        self.use_tree(prefix, imports);
                        if self.peek() == Some(&Token::Punct(',')) {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    prefix.truncate(depth);
                    self.skip_to_end_of_branch();
                    return;
                }
                Some(Token::Punct(',' | ';' | '}')) => {
                    self.at -= 1;
                    if prefix.len() > depth {
                        if prefix.last().is_some_and(|last| last == "self") {
                            prefix.pop();
                        }
                        if let Some(name) = prefix.last().cloned() {
                            imports.push((Some(name), prefix.clone()));
                        }
                    }
                    prefix.truncate(depth);
                    return;
                }
                Some(Token::Punct(_)) => {}
                None => return,
            }
        }
    }

    fn skip_to_end_of_branch(&mut self) {
        while !matches!(self.peek(), Some(Token::Punct(',' | ';' | '}')) | None) {
            self.at += 1;
        }
    }

    /// Reads an attribute after its `#`; skips the item that it stands on if that is for tests only.
    fn attribute(&mut self) {
        if self.peek() == Some(&Token::Punct('!')) {
            self.at += 1;
        }
        if self.peek() != Some(&Token::Punct('[')) {
            return;
        }
        let start = self.at;
        self.skip_group('[', ']');
        let names: Vec<_> = self.tokens[start..self.at].iter().filter_map(Token::ident).collect();
        if names.first() != Some(&"cfg") || !names.contains(&"test") || names.contains(&"not") {
            return;
        }
        loop {
            match self.peek() {
                Some(Token::Punct('#')) => {
                    self.at += 1;
                    self.skip_group('[', ']');
                }
                Some(Token::Punct('(')) => self.skip_group('(', ')'),
                Some(Token::Punct('{')) => {
                    self.skip_group('{', '}');
                    return;
                }
                Some(Token::Punct(';' | ',')) => {
                    self.at += 1;
                    return;
                }
                // The next closing brace belongs to what surrounds the item.
                Some(Token::Punct('}')) | None => return,
                Some(_) if self.peek_ident() == Some("use") => {
                    while !matches!(self.next(), Some(Token::Punct(';')) | None) {}
                    return;
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn skip_group(&mut self, open: char, close: char) {
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token {
                Token::Punct(c) if c == open => depth += 1,
                Token::Punct(c) if c == close => {
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

fn top_level_module(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// The graph between top-level modules. The crate root, which only declares them, is none.
fn top_level(files: &Graph) -> Graph {
    let mut graph = Graph::new();
    for (from, edges) in files {
        for (to, why) in edges {
            let (from_module, to_module) = (top_level_module(from), top_level_module(to));
            if from_module != to_module && from_module != "lib" && to_module != "lib" {
                let edges = graph.entry(from_module.to_owned()).or_default();
                edges.entry(to_module.to_owned()).or_insert_with(|| format!("{why} in {from}"));
            }
        }
    }
    graph
}

/// One shortest cycle for each file that lies on one, each cycle once, written for people.
fn cycles(graph: &Graph) -> Vec<String> {
    let mut found: BTreeMap<BTreeSet<String>, String> = BTreeMap::new();
    for start in graph.keys() {
        let mut parents: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([start.as_str()]);
        while let Some(at) = queue.pop_front() {
            for to in graph.get(at).into_iter().flat_map(BTreeMap::keys) {
                if to == start {
                    let mut nodes = vec![at];
                    while let Some(parent) = parents.get(nodes[nodes.len() - 1]) {
                        nodes.push(parent);
                    }
                    nodes.reverse();
                    let mut text = String::new();
                    for (index, node) in nodes.iter().enumerate() {
                        let next = nodes.get(index + 1).copied().unwrap_or(start);
                        let _ = writeln!(text, "  {node} -> {next} ({})", graph[*node][next]);
                    }
                    found.entry(nodes.iter().map(|node| (*node).to_owned()).collect()).or_insert(text);
                    queue.clear();
                    break;
                }
                if !parents.contains_key(to.as_str()) && to != start {
                    parents.insert(to, at);
                    queue.push_back(to);
                }
            }
        }
    }
    found.into_values().collect()
}

fn shared() -> Crate {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shared");
    Crate::load(&|file| fs::read_to_string(root.join(file)).ok())
}

#[test]
fn top_level_modules_have_no_import_cycle() {
    let cycles = cycles(&top_level(&shared().files()));
    assert!(cycles.is_empty(), "cycles between modules of shared/:\n{}", cycles.join("\n"));
}

#[test]
fn files_have_no_import_cycle() {
    let cycles = cycles(&shared().files());
    assert!(cycles.is_empty(), "cycles between files of shared/:\n{}", cycles.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(files: &[(&str, &str)]) -> Graph {
        let read = |file: &str| files.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned());
        Crate::load(&read).files()
    }

    fn edges(graph: &Graph) -> Vec<(&str, &str)> {
        graph.iter().flat_map(|(from, edges)| edges.keys().map(move |to| (from.as_str(), to.as_str()))).collect()
    }

    const LIB: (&str, &str) = ("lib.rs", "pub mod a; pub mod b;");

    #[test]
    fn re_export_is_no_edge_unless_the_file_uses_the_name() {
        let graph = graph(&[
            LIB,
            ("a/mod.rs", "mod child; pub(crate) use child::Unused; pub use child::Used; fn f(x: Used) {}"),
            ("a/child.rs", "pub struct Unused; pub struct Used;"),
            ("b/mod.rs", "mod child; pub use child::Unused;"),
            ("b/child.rs", "pub struct Unused;"),
        ]);
        assert_eq!(edges(&graph), [("a/mod.rs", "a/child.rs")]);
    }

    #[test]
    fn re_export_from_another_top_level_module_is_an_edge() {
        let graph = graph(&[
            LIB,
            ("a.rs", "pub use crate::b::B; pub struct A;"),
            ("b/mod.rs", "mod child; pub use child::B;"),
            ("b/child.rs", "use crate::a::A; pub struct B;"),
        ]);
        assert_eq!(edges(&graph), [("a.rs", "b/child.rs"), ("b/child.rs", "a.rs")]);
        assert_eq!(cycles(&top_level(&graph)).len(), 1);
    }

    #[test]
    fn imports_in_nested_groups_are_resolved() {
        let graph = graph(&[
            LIB,
            ("a.rs", "use crate::{b::{self, inner::{Deep as Other, Unused}}, b::Shallow};"),
            ("b/mod.rs", "pub mod inner; pub struct Shallow;"),
            ("b/inner.rs", "pub struct Deep; pub enum Unused {}"),
        ]);
        assert_eq!(edges(&graph), [("a.rs", "b/inner.rs"), ("a.rs", "b/mod.rs")]);
    }

    #[test]
    fn re_export_leads_to_the_defining_file() {
        let graph = graph(&[
            LIB,
            ("a.rs", "use crate::b::Renamed; fn f() { crate::b::globbed(); }"),
            ("b/mod.rs", "mod inner; mod more; pub use inner::Deep as Renamed; pub use self::more::*;"),
            ("b/inner.rs", "pub struct Deep;"),
            ("b/more.rs", "pub fn globbed() {}"),
        ]);
        assert!(edges(&graph).contains(&("a.rs", "b/inner.rs")));
        assert!(edges(&graph).contains(&("a.rs", "b/more.rs")));
        assert!(!edges(&graph).contains(&("a.rs", "b/mod.rs")));
    }

    #[test]
    fn inline_paths_and_super_count_as_imports() {
        let graph = graph(&[
            LIB,
            ("a/mod.rs", "mod child; pub struct Parent; fn f() -> crate::b::B { child::make() }"),
            ("a/child.rs", "pub fn make() { let _: super::Parent; }"),
            ("b.rs", "pub struct B; use crate::a; fn f() { a::Parent; }"),
        ]);
        let expected =
            [("a/child.rs", "a/mod.rs"), ("a/mod.rs", "a/child.rs"), ("a/mod.rs", "b.rs"), ("b.rs", "a/mod.rs")];
        assert_eq!(edges(&graph), expected);
        assert_eq!(cycles(&graph).len(), 2);
        let between_modules = cycles(&top_level(&graph));
        assert_eq!(between_modules.len(), 1);
        assert!(between_modules[0].contains("a -> b (crate::b::B in a/mod.rs)"), "{}", between_modules[0]);
    }

    #[test]
    fn test_code_comments_and_strings_do_not_count() {
        let graph = graph(&[
            LIB,
            (
                "a.rs",
                r#"//! [`crate::b::B`]
                #[cfg(test)] use crate::b::B;
                #[cfg(test)] mod tests { use crate::b::B; }
                #[cfg(test)] mod in_a_file;
                #[cfg(test)] #[allow(x)] fn helper(b: crate::b::B) -> u8 { 0 }
                fn f() { "crate::b::B"; }"#,
            ),
            ("b.rs", "pub struct B;"),
        ]);
        assert_eq!(edges(&graph), []);
    }

    #[test]
    fn code_outside_of_tests_counts() {
        let source = r#"#[cfg(not(test))] fn f() { use crate::b::B; } impl X { fn b() -> crate::b::C { loop {} } }"#;
        let graph = graph(&[LIB, ("a.rs", source), ("b.rs", "pub struct B; pub struct C;")]);
        assert_eq!(edges(&graph), [("a.rs", "b.rs")]);
    }

    #[test]
    fn chain_without_a_way_back_is_no_cycle() {
        let graph = graph(&[LIB, ("a.rs", "use crate::b::B;"), ("b.rs", "pub struct B;")]);
        assert!(cycles(&graph).is_empty());
    }
}
