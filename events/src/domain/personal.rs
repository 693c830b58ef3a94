//! Which fields cannot be personal: those that the fold, the filters, the visibility or a typed column have to read, while
//! all that they would find is a sealed text. Pure; knows no lines of a file.

use super::{Domain, Field, FieldType, Filter, IdentityPart, Visibility};

/// The personal fields of a domain that cannot be, each with why.
pub(super) fn not_sealable(domain: &Domain) -> Vec<(&str, String)> {
    domain
        .fields
        .iter()
        .filter(|field| field.personal)
        .filter_map(|field| Some((field.name.as_str(), why_not(domain, field)?)))
        .collect()
}

fn why_not(domain: &Domain, field: &Field) -> Option<String> {
    let name = &field.name;
    let named = |other: &String| other == name;
    let reads = if field.read_only {
        "it is read_only: the server gives it"
    } else if field.default.is_some() {
        "it has a default, which would lie beside sealed values unsealed"
    } else if domain
        .identity
        .iter()
        .any(|part| matches!(part, IdentityPart::Field(names) if names.iter().any(named)))
    {
        "it identifies the record"
    } else if domain.parent.as_ref().is_some_and(|parent| parent.field == *name) {
        "it names the parent"
    } else if domain.status.as_ref().is_some_and(|status| status.field == *name) {
        "it is the status"
    } else if domain.delete_flag.as_ref().is_some_and(named) {
        "it is the delete_flag"
    } else if domain.keep.iter().any(named) {
        "it is in keep"
    } else if domain
        .orders
        .iter()
        .any(|order| order.earlier == *name || order.later == *name)
    {
        "an order compares it"
    } else if domain.filters.iter().any(|filter| filtered(filter) == name) {
        "a filter compares it"
    } else if reads_it(&domain.visibility, name) {
        "the visibility depends on it"
    } else if field.column && is_typed(&field.kind) {
        "it is a column of a type that holds no sealed text: leave out column"
    } else {
        return None;
    };
    Some(format!("{name} cannot be personal: {reads}"))
}

fn filtered(filter: &Filter) -> &String {
    match filter {
        Filter::Equals { field, .. } | Filter::From { field, .. } => field,
    }
}

fn reads_it(visibility: &Visibility, name: &str) -> bool {
    match visibility {
        Visibility::Scoped { field, scopes } => {
            field == name || scopes.values().any(|scope| scope.lists(name))
        }
        _ => false,
    }
}

fn is_typed(kind: &FieldType) -> bool {
    matches!(
        kind,
        FieldType::Integer { .. }
            | FieldType::Number { .. }
            | FieldType::Boolean
            | FieldType::DateTime { .. }
    )
}

#[cfg(test)]
mod tests {
    use crate::domain::{Registry, parse};

    const FILE: &str = r#"
domain = "visits"
kind = "entity"
topic = "sync.visits.v1"
keep = ["kept"]
filters = ["filtered"]
delete_flag = "gone"
[status]
field = "status"
initial = "NEW"
transitions = {}
[[order]]
earlier = "from"
later = "to"
[visibility]
rule = "scoped"
field = "scope"
scopes = { all = { read = ["everyone"] }, some = { read = ["field:members"] } }
[fields]
"#;

    const FIELDS: [(&str, &str); 12] = [
        ("status", r#"type = "enum", values = ["NEW"]"#),
        ("kept", r#"type = "string""#),
        ("filtered", r#"type = "string""#),
        ("gone", r#"type = "boolean""#),
        ("from", r#"type = "datetime""#),
        ("to", r#"type = "datetime""#),
        (
            "scope",
            r#"type = "enum", values = ["all", "some"], default = "all""#,
        ),
        ("members", r#"type = "strings""#),
        ("number", r#"type = "string", read_only = true"#),
        ("rating", r#"type = "integer", column = true"#),
        ("note", r#"type = "string", column = true"#),
        ("mood", r#"type = "integer""#),
    ];

    fn file(personal: &str) -> String {
        let line = |(name, rest): &(&str, &str)| match *name == personal {
            true => format!("{name} = {{ {rest}, personal = true }}\n"),
            false => format!("{name} = {{ {rest} }}\n"),
        };
        format!("{FILE}{}", FIELDS.iter().map(line).collect::<String>())
    }

    #[test]
    fn what_the_service_has_to_read_cannot_be_personal() {
        for (name, _) in FIELDS {
            let parsed = parse(&file(name));
            if matches!(name, "note" | "mood") {
                let domain = parsed.expect("a definition");
                assert!(domain.is_personal(name) && domain.is_personal("whatever else"));
                assert!(!domain.is_personal("status") && !domain.is_personal("client_timestamp"));
                continue;
            }
            let defects = parsed.expect_err(name);
            let line = file(name)
                .lines()
                .position(|line| line.contains("personal"))
                .map(|at| at + 1);
            assert_eq!(
                (defects.len(), Some(defects[0].line)),
                (1, line),
                "{name}: {defects:?}"
            );
            assert!(defects[0].message.contains("cannot be personal"), "{defects:?}");
        }
        let plain = parse(&file("")).expect("a definition");
        assert!(!plain.has_personal() && !plain.is_personal("whatever else"));
    }

    #[test]
    fn the_domains_that_ship_say_what_is_personal() {
        let registry = Registry::shipped();
        for (domain, field) in [
            ("journal", "content"),
            ("helpdesk", "ticketdesc"),
            ("attendance", "gpslocation"),
        ] {
            assert!(
                registry.by_name(domain).expect("a domain").is_personal(field),
                "{domain}"
            );
        }
        assert!(registry.iter().all(|domain| domain.has_personal()));
    }
}
