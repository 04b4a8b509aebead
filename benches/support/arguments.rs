//! Command line arguments of a benchmark: `--quick` and the parts to run.

pub struct Arguments {
    pub is_quick: bool,
    parts: Vec<String>,
}

impl Arguments {
    /// `None` without `--bench`, which `cargo bench` passes: `cargo test --all-targets` runs benchmarks too.
    pub fn parse(arguments: &[String], known_parts: &[&str]) -> Result<Option<Self>, String> {
        if !arguments.iter().any(|argument| argument == "--bench") {
            println!("nothing is measured without --bench, which `cargo bench` passes");
            return Ok(None);
        }
        let (mut is_quick, mut parts) = (false, Vec::new());
        for argument in arguments {
            match argument.as_str() {
                "--bench" => {}
                "--quick" => is_quick = true,
                part if known_parts.contains(&part) => parts.push(part.to_owned()),
                other => return Err(format!("{other:?} is none of --quick, {}", known_parts.join(", "))),
            }
        }
        Ok(Some(Self { is_quick, parts }))
    }

    /// All parts are selected unless some are named.
    pub fn selects(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|selected| selected == part)
    }

    /// A part of many minutes is selected only if it is named, or quick.
    pub fn selects_long(&self, part: &str) -> bool {
        self.selects(part) && (self.is_quick || !self.parts.is_empty())
    }
}
