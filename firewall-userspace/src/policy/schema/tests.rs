use super::*;
use crate::policy::limits::Kind;
use crate::policy::limits::text::{self, Scope};
use crate::policy::{file, ports, source};
use std::path::Path;

/// The examples of the documentation.
const EXAMPLES: [(&str, &str); 3] = [
    (
        "policy.toml",
        include_str!("../../../../docs/examples/policy.toml"),
    ),
    (
        "egress.toml",
        include_str!("../../../../docs/examples/egress.toml"),
    ),
    (
        "limits.toml",
        include_str!("../../../../docs/examples/limits.toml"),
    ),
];

/// The keywords that the schema uses, and no others; patterns are tried apart.
fn valid(schema: &Value, root: &Value, value: &Value) -> Result<(), String> {
    let object = schema.as_object().ok_or("a schema is not an object")?;
    let fail = |why: &str| Err(format!("{why}: {value}"));
    for (keyword, argument) in object {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "default" | "examples" | "format" | "pattern"
            | "propertyNames" => {}
            "$ref" => {
                let pointer = argument
                    .as_str()
                    .and_then(|text| text.strip_prefix('#'))
                    .ok_or("bad $ref")?;
                valid(
                    root.pointer(pointer).ok_or(format!("dangling {pointer}"))?,
                    root,
                    value,
                )?;
            }
            "type" => {
                let matches = match argument.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("integer") => value.is_i64(),
                    _ => return Err(format!("unknown type {argument}")),
                };
                if !matches {
                    return fail("wrong type");
                }
            }
            "const" if value != argument => return fail("not the constant"),
            "const" => {}
            "enum" if !argument.as_array().is_some_and(|all| all.contains(value)) => {
                return fail("not in the enum");
            }
            "enum" => {}
            "not" if valid(argument, root, value).is_ok() => return fail("forbidden"),
            "not" => {}
            "required" => {
                for key in argument.as_array().into_iter().flatten() {
                    if value.get(key.as_str().unwrap_or_default()).is_none() {
                        return fail(&format!("{key} is missing"));
                    }
                }
            }
            "properties" | "additionalProperties" => {
                for (key, member) in value.as_object().into_iter().flatten() {
                    match (
                        object.get("properties").and_then(|all| all.get(key)),
                        object.get("additionalProperties"),
                    ) {
                        (Some(schema), _) => valid(schema, root, member)?,
                        (None, Some(Value::Bool(false))) => return fail(&format!("unknown key {key}")),
                        (None, Some(schema)) => valid(schema, root, member)?,
                        (None, None) => {}
                    }
                }
            }
            "items" => value
                .as_array()
                .into_iter()
                .flatten()
                .try_for_each(|item| valid(argument, root, item))?,
            "minimum" if value.as_i64() < argument.as_i64() => return fail("too small"),
            "maximum" if value.as_i64() > argument.as_i64() => return fail("too large"),
            "minimum" | "maximum" => {}
            "minItems" if value.as_array().is_some_and(Vec::is_empty) => return fail("too few"),
            "minItems" => {}
            "minLength" if value.as_str() == Some("") => return fail("too short"),
            "minLength" => {}
            "anyOf" | "oneOf" => {
                let fits = argument
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|schema| valid(schema, root, value).is_ok())
                    .count();
                if fits == 0 || keyword == "oneOf" && fits > 1 {
                    return fail(&format!("{fits} alternatives fit"));
                }
            }
            other => return Err(format!("keyword {other} is not known to this check")),
        }
    }
    Ok(())
}

fn check(text: &str) -> Result<(), String> {
    let value: toml::Value = text
        .parse::<toml::Table>()
        .map_err(|error| error.to_string())?
        .into();
    let schema = json_schema();
    valid(&schema, &schema, &json(&value))
}

/// As editors see it: dates are strings.
fn json(value: &toml::Value) -> Value {
    match value {
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(items) => items.iter().map(json).collect(),
        toml::Value::Table(table) => table
            .iter()
            .map(|(key, value)| (key.clone(), json(value)))
            .collect(),
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(flag) => (*flag).into(),
    }
}

#[test]
fn the_examples_are_valid_and_load_without_a_warning() {
    for (name, text) in EXAMPLES {
        assert_eq!(check(text), Ok(()), "{name}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs/examples")
            .join(name);
        let loaded = file::load(&path, 0).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.warnings, [], "{name}");
    }
}

#[test]
fn the_document_of_a_fleet_is_valid_and_tells_that_its_nodes_are_unknown_here() {
    let text = include_str!("../../../../docs/examples/fleet.toml");
    assert_eq!(check(text), Ok(()));
    let loaded = file::parse(text, Path::new("fleet.toml"), 0).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        loaded.header.map(|header| header.name).as_deref(),
        Some("payments")
    );
    let told: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("who these nodes are is known to the agents of a fleet only"),
        "{told:?}"
    );
}

#[test]
fn temporary_entries_and_list_files_are_valid() {
    let text = "version = 1\ndeny = [{ source = \"@x\", until = 2026-11-22T05:00:00Z }]\n[groups]\nx = { file = \"a\" }\ny = []\n";
    assert_eq!(check(text), Ok(()));
}

#[test]
fn shapes_that_the_parser_refuses_are_invalid() {
    for text in [
        "",
        "version = 2",
        "version = 1\nallow = []",
        "version = 1\ndeny = \"any\"",
        "version = 1\ndeny = [\"any\"]",
        "version = 1\ndeny = [{ source = \"@a\" }]",
        "version = 1\n[defaults]\ningress = \"drop\"",
        "version = 1\n[groups]\na = { path = \"x\" }",
        "version = 1\n[groups]\na = { nodes = \"x\", file = \"y\" }",
        "version = 1\n[groups]\na = { file = \"y\", within = [\"10.0.0.0/8\"] }",
        "version = 1\n[groups]\na = { nodes = \"x\", within = [] }",
        "version = 1\n[groups]\na = { nodes = \"x\", within = \"10.0.0.0/8\" }",
        "version = 1\n[groups]\na = { nodes = [\"x\"] }",
        "version = 1\n[policy]\nname = \"a\"",
        "version = 1\n[policy]\nnodes = \"*\"",
        "version = 1\n[policy]\nname = \"a\"\nnodes = [\"b\"]",
        "version = 1\n[policy]\nname = \"a\"\nnodes = \"*\"\nversion = 3",
        "version = 1\npolicy = \"a\"",
        "version = 1\n[[service]]\nname = \"a\"",
        "version = 1\n[[service]]\nname = \"a\"\nports = []",
        "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nalow = []",
        "version = 1\n[defaults]\negress = \"drop\"",
        "version = 1\n[[egress]]\nto = [\"any\"]",
        "version = 1\n[[egress]]\nname = \"a\"\nports = []",
        "version = 1\n[[egress]]\nname = \"a\"\nallow = [\"any\"]",
        "version = 1\n[[egress]]\nname = \"a\"\nto = \"any\"",
        "version = 1\n[defaults.limits]\nsource = 24",
        "version = 1\n[defaults.limits]\nsource = { v4 = 7 }",
        "version = 1\n[defaults.limits]\nsource = { v6 = 129 }",
        "version = 1\n[defaults.limits]\npackets = { per_source = 20 }",
        "version = 1\n[defaults.limits]\npackets = \"20/s\"",
        "version = 1\n[defaults.limits]\nconnections = { per_source = 0 }",
        "version = 1\n[defaults.limits]\nconnections = { total = 3, burst = 3 }",
        "version = 1\n[defaults.limits]\nbytes = { total = \"1MB/s\", total_burst = 100000 }",
        "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\n[[service.limit]]\npackets.total = \"1/s\"",
        "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\n[[service.limit]]\nfor = []",
        "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\n[[service.limit]]\nfor = \"10.0.0.1\"\nsource = { v4 = 24 }",
        "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nlimits = []",
    ] {
        assert!(check(text).is_err(), "{text}");
        assert!(file::parse(text, Path::new("p"), 0).is_err(), "{text}");
    }
}

/// `proptest` makes texts from a pattern, so that what the patterns promise is held against the parsers.
mod patterns {
    use super::*;
    use proptest::prelude::*;

    fn pattern(pointer: &str) -> String {
        let schema = json_schema();
        schema
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap()
            .trim_matches(['^', '$'])
            .to_string()
    }

    proptest! {
        #[test]
        fn ports_have_the_right_shape(text in pattern("/$defs/port/pattern").as_str()) {
            // What is left to refuse is out of range or reversed, never unknown.
            if let Err(error) = ports::parse(&text) {
                let known = ["out of range", "reversed", "judged by", "extension header", "no message", "not a port"];
                prop_assert!(known.iter().any(|known| error.message.contains(known)), "{text}: {}", error.message);
            }
        }

        #[test]
        fn rates_and_sizes_have_the_right_shape(
            count in pattern("/$defs/count_rate/pattern").as_str(),
            bytes in pattern("/$defs/byte_rate/pattern").as_str(),
            size in pattern("/$defs/size/pattern").as_str(),
            excess in pattern("/$defs/limits/properties/on_excess/pattern").as_str(),
        ) {
            let known = ["out of range", "not a whole number", "a rate of 0", "\"unlimited\" is not a rate"];
            let read = [
                text::rate(&count, Kind::Packets, Scope::Total).err(),
                text::rate(&bytes, Kind::Bytes, Scope::Source).err(),
                text::burst(&size, Kind::Bytes, Scope::Source).err(),
            ];
            for error in read.into_iter().flatten() {
                prop_assert!(known.iter().any(|known| error.message.contains(known)), "{}", error.message);
            }
            let known = ["out of range", "no time at all", "does not say for how long", "duration is missing", "hundred years"];
            if let Err(error) = text::on_excess(&excess) {
                prop_assert!(known.iter().any(|known| error.message.contains(known)), "{excess}: {}", error.message);
            }
        }

        #[test]
        fn selectors_are_selectors(text in pattern("/$defs/selector/pattern").as_str()) {
            if let Err(error) = crate::fleet::selector::Selector::parse(&text) {
                prop_assert!(error.message.contains("cannot name a node"), "{text}: {}", error.message);
            }
        }

        #[test]
        fn names_are_names(text in NAME_PATTERN) {
            prop_assert!(source::is_name(&text));
        }
    }
}
