//! The model: which memories each user must have, and random inputs.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1 as pb;

pub const USERS: [&str; 32] = [
    "ann",
    "Ann",
    "ANN",
    "ann ",
    " ann",
    "anna",
    "an",
    "аnn",
    "ａｎｎ",
    "ann\u{200b}",
    "a\u{308}nn",
    "änn",
    "ann'",
    "ann''",
    "ann\"",
    "ann%",
    "%",
    "_",
    "a_n",
    "\\",
    "ann\\'",
    "' or '1'='1",
    "ann'; drop table memories; --",
    "$1",
    "{ann,bob}",
    "null",
    "NULL",
    "current_user",
    "agent_service",
    "*",
    "0",
    "用户",
];

/// Ids and tags that all users share.
pub const NAMES: [&str; 24] = [
    "m0",
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "M0",
    "m0 ",
    "ｍ0",
    "m%",
    "%",
    "_",
    "m'",
    "'",
    "\"",
    "\\",
    "\\'",
    "null",
    "{m0,m1}",
    "a/b",
    "' or true --",
    "m0'); delete from memories; --",
    "$1",
    "ann",
];

pub const COMMON: [&str; 4] =
    ["the exam is on Friday", "eigenvalues are hard", "特征值很难", "' union select content from memories --"];

pub const WORDS: [&str; 10] =
    ["kat", "zat", "mat", "特征值", "exam", "%", "owner-3", "' or 1=1 --", "ann bob Ann", "owner-7 kat exam Friday"];

pub const SOURCES: [&str; 3] = ["note", "chat", "note' or source_type = 'chat"];

/// Marsaglia's xorshift: every run is the same.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn pick_up_to(&mut self, from: &[&str], most: usize) -> Vec<String> {
        (0..self.below(most + 1)).map(|_| self.pick(from).to_owned()).collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExpectedMemory {
    pub content: String,
    pub source: String,
    pub tags: Vec<String>,
    pub document: String,
    pub superseded_by: String,
    pub history: Vec<String>,
}

impl ExpectedMemory {
    pub fn matches(&self, filter: &pb::MemoryFilter) -> bool {
        filter.tags.iter().all(|tag| self.tags.contains(tag))
            && (filter.source_types.is_empty() || filter.source_types.contains(&self.source))
    }
}

/// A user with the memories that the store must have.
pub struct ExpectedUser {
    pub id: &'static str,
    pub number: usize,
    pub texts: usize,
    pub memories: BTreeMap<String, ExpectedMemory>,
}

impl ExpectedUser {
    /// A new text with the mark of its owner.
    pub fn new_text(&mut self, random: &mut Random) -> String {
        self.texts += 1;
        format!("owner-{} {} {} {}", self.number, random.pick(&WORDS), random.pick(&WORDS), self.texts)
    }

    /// Updates the model after `added` was stored under `ids`, one each. `foreign_ids` belong to other users.
    pub fn apply_add(&mut self, added: &[pb::MemoryInput], ids: &[String], foreign_ids: &[String]) {
        assert_eq!(ids.len(), added.len());
        let before = self.memories.clone();
        for (id, input) in ids.iter().zip(added) {
            if !self.is_unchanged(&before, id, input, foreign_ids) {
                let history = self.memories.get(id).map(|memory| memory.history.clone()).unwrap_or_default();
                let memory = ExpectedMemory {
                    content: input.content.clone(),
                    source: input.source_type.clone(),
                    tags: input.tags.clone(),
                    document: String::new(),
                    superseded_by: String::new(),
                    history,
                };
                self.memories.insert(id.clone(), memory);
            }
        }
        for (id, input) in ids.iter().zip(added) {
            // A memory that supersedes its successor is current again.
            let successor =
                |id: &String| before.get(id).map(|memory| &memory.superseded_by).filter(|id| !id.is_empty());
            let mut successors = std::iter::successors(successor(id), |id| successor(id)).take(before.len());
            if successors.any(|successor| successor != id && input.supersedes.contains(successor))
                && let Some(memory) = self.memories.get_mut(id)
            {
                memory.superseded_by.clear();
            }
        }
        for (id, input) in ids.iter().zip(added) {
            for old in input.supersedes.iter().filter(|old| *old != id) {
                if let Some(memory) = self.memories.get_mut(old) {
                    memory.superseded_by.clone_from(id);
                }
            }
        }
    }

    fn is_unchanged(
        &self,
        before: &BTreeMap<String, ExpectedMemory>,
        id: &String,
        input: &pb::MemoryInput,
        foreign_ids: &[String],
    ) -> bool {
        let is_same = |memory: &ExpectedMemory| memory.content == input.content && memory.document.is_empty();
        if !input.id.is_empty() {
            assert_eq!(*id, input.id);
            return before.get(id).is_some_and(is_same);
        }
        // Content is deduplicated within a user, never across users.
        let known = before.iter().find(|(_, memory)| is_same(memory) && memory.superseded_by.is_empty());
        match known {
            Some((known, _)) => assert_eq!(id, known, "{:?}: {}", self.id, input.content),
            None => assert!(!before.contains_key(id) && !foreign_ids.contains(id), "{id} is not new"),
        }
        known.is_some()
    }

    pub fn metadata(&self) -> BTreeMap<String, String> {
        [("owner".to_owned(), self.number.to_string())].into()
    }

    pub fn own_id(&self, random: &mut Random) -> Option<String> {
        let count = self.memories.len().max(1);
        self.memories.keys().nth(random.below(count)).cloned()
    }

    pub fn assert_owned(&self, id: &str, content: &str, metadata: &BTreeMap<String, String>) -> &ExpectedMemory {
        assert_eq!(metadata.get("owner"), Some(&self.number.to_string()), "{:?} was given {id:?}: {content}", self.id);
        let memory = self.memories.get(id).unwrap_or_else(|| panic!("{:?} has no {id:?}: {content}", self.id));
        assert_eq!(memory.content, content, "{:?}, {id:?}", self.id);
        memory
    }
}
