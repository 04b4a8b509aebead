//! Links between documents resolve, with their anchors.

use std::path::{Component, Path, PathBuf};

use super::text::{absolute, files, prose, read};

/// The anchor of a heading, as repository hosts make it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(markdown: &str) -> Vec<String> {
    prose(markdown).lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// Targets of `[text](target)`, also of images.
fn targets(markdown: &str) -> Vec<String> {
    let text = prose(markdown);
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

fn normalized(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, component| {
        match component {
            Component::ParentDir => drop(path.pop()),
            component => path.push(component),
        }
        path
    })
}

#[test]
fn pages_that_sources_mention_exist() {
    let mut absent = Vec::new();
    let sources = [".env.example", "template.yaml", "shared", "functions", "tests", "infra", "examples", "benches"];
    for path in sources.iter().flat_map(|path| files(path, &["rs", "py", "sh", "sql", "js", "go", "yaml"])) {
        let source = read(&path);
        let mentions = source.match_indices("docs/").map(|(at, _)| &source[at..]);
        let pages =
            mentions.filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && !"/-_.".contains(c)).next());
        for page in pages.map(|page| page.trim_end_matches('.')).filter(|page| page.ends_with(".md")) {
            if !absolute(page).exists() {
                absent.push(format!("{path}: {page}"));
            }
        }
    }
    assert!(absent.is_empty(), "sources mention pages that do not exist:\n{}", absent.join("\n"));
}

#[test]
fn links_resolve() {
    let mut broken = Vec::new();
    for page in files(".", &["md"]) {
        let markdown = read(&page);
        for target in targets(&markdown).iter().filter(|target| !target.contains("://")) {
            let (path, fragment) =
                target.split_once('#').map_or((target.as_str(), None), |(path, id)| (path, Some(id)));
            let file = match path {
                "" => page.clone().into(),
                path => normalized(&Path::new(&page).parent().unwrap().join(path)),
            };
            let file = file.to_str().unwrap().to_owned();
            let has_anchor = |id: &str| anchors(&read(&file)).iter().any(|anchor| anchor == id);
            if !absolute(&file).exists() || !fragment.is_none_or(has_anchor) {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}
