//! Names of members, in one piece of memory: every row of a feed has some.

/// Names, one after the other in one piece.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    text: String,
    ends: Vec<u32>,
}

impl Names {
    /// With room for so many bytes of so many.
    pub(super) fn with_room(bytes: usize, count: usize) -> Names {
        Names {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(count),
        }
    }

    /// Adds one.
    pub fn push(&mut self, name: &str) {
        self.text.push_str(name);
        // They come from one item.
        self.ends.push(self.text.len() as u32);
    }

    /// In order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut from = 0;
        self.ends.iter().map(move |end| {
            let name = &self.text[from..*end as usize];
            from = *end as usize;
            name
        })
    }

    /// Whether that is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|known| known == name)
    }
}

impl<'a> FromIterator<&'a str> for Names {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Names {
        let mut all = Names::default();
        names.into_iter().for_each(|name| all.push(name));
        all
    }
}
