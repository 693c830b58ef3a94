//! Domains of the tests, read once: a property folds thousands of histories.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use tidelog_events::domain::Registry;

/// Those that ship.
pub fn shipped() -> &'static Registry {
    static SHIPPED: LazyLock<Registry> = LazyLock::new(Registry::shipped);
    &SHIPPED
}

/// Shipped domains that remember for so many seconds, under names of their own.
pub fn remembering(seconds: u32) -> Registry {
    const SHIPPED: [&str; 4] = [
        include_str!("../../../events/definitions/helpdesk.toml"),
        include_str!("../../../events/definitions/journal.toml"),
        include_str!("../../../events/definitions/journal-media.toml"),
        include_str!("../../../events/definitions/sessions.toml"),
    ];
    static KNOWN: Mutex<BTreeMap<u32, Registry>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let read = || {
        let own = SHIPPED.map(|text| {
            let text = text.replacen("\nkind = ", &format!("\nhistory = \"{seconds}s\"\nkind = "), 1);
            let text = text
                .replace("table = \"journal_media\"\n", "")
                .replace("entity_type = \"", "entity_type = \"own-");
            let text = text
                .replace("domain = \"", "domain = \"own-")
                .replace("topic = \"", "topic = \"own.");
            ("own.toml".to_owned(), text)
        });
        Registry::with(&own).unwrap_or_else(|error| panic!("{error}"))
    };
    known.entry(seconds).or_insert_with(read).clone()
}
