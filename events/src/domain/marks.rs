//! What the fold goes by in a definition, as a hash: two definitions with the same one fold the same events to the same rows. What
//! only gateways, readers and analysts go by (policies, which events carry; filters; promoted columns) does not count.

use super::Domain;
use sha2::{Digest, Sha256};

/// The hash over the definitions of a topic's domains, in hexadecimal.
pub fn fold_marks<'a>(domains: impl IntoIterator<Item = &'a Domain>) -> String {
    let mut hash = Sha256::new();
    for domain in domains {
        hash.update(marks(domain));
    }
    let digest = hash.finalize();
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn marks(domain: &Domain) -> String {
    let mut lines = vec![
        format!("domain {:?} {:?} {:?}", domain.name, domain.table, domain.topic),
        format!("kind {:?} {:?}", domain.kind, domain.identity),
        format!("status {:?}", domain.status),
        format!("keep {:?}", domain.keep),
        format!("orders {:?}", domain.orders),
        format!("parent {:?} {:?}", domain.parent, domain.numbering),
        format!("delete {:?}", domain.delete_flag),
        format!("visibility {:?}", domain.visibility),
        format!("history {:?}", domain.history),
    ];
    lines.extend(domain.fields.iter().map(|field| {
        format!(
            "field {:?} {:?} {} {} {} {:?}",
            field.name, field.kind, field.required, field.read_only, field.personal, field.default
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::parse;

    const INSPECTIONS: &str = "domain = \"inspections\"\nkind = \"entity\"\ntopic = \"sync.inspections.v1\"\n\
                               [fields]\nnote = { type = \"string\", max = 20 }\n";

    fn of(text: &str) -> String {
        fold_marks([&parse(text).expect("a definition")])
    }

    #[test]
    fn only_what_the_fold_goes_by_counts() {
        let column = INSPECTIONS.replace("max = 20", "max = 20, column = true");
        assert_eq!(of(INSPECTIONS), of(&column), "a promoted column");
        let personal = INSPECTIONS.replace("max = 20", "max = 20, personal = true");
        let default = INSPECTIONS.replace("max = 20", "max = 20, default = \"none\"");
        let history = INSPECTIONS.replace("kind =", "history = \"400d\"\nkind =");
        for other in [personal, default, history] {
            assert_ne!(of(INSPECTIONS), of(&other), "{other}");
        }
    }
}
