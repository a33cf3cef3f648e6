//! Turns the descriptor set that the crate `envoy-types` ships into the constant tables that `src/schema.rs` reads in
//! place, so that the codec needs no work at start-up. The record layouts are described in `src/schema.rs`. The messages
//! of `kuma/**/*.proto` are added to the tables, and the services of `kds.proto` become code.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Where the descriptor set lies inside the package `envoy-types`.
const INSIDE_PACKAGE: &str = "src/generated/types.bin";
/// Overrides the search with the path of a descriptor set.
const OVERRIDE: &str = "SHIKA_ENVOY_DESCRIPTOR_SET";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let path = descriptor_set()?;
    println!("cargo::rerun-if-changed={}", path.display());
    let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let set = FileDescriptorSet::decode(bytes.as_slice())
        .map_err(|e| format!("{} is not a protobuf descriptor set: {e}", path.display()))?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let kuma = kuma(set.clone(), &out)?;
    let set = FileDescriptorSet { file: set.file.into_iter().chain(kuma).collect() };
    Tables::new(&set)?.write(&out)
}

/// Compiles our own .proto files, which import those of Envoy, and writes the code of the services among them.
fn kuma(envoy: FileDescriptorSet, out: &Path) -> Result<Vec<FileDescriptorProto>, String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    println!("cargo::rerun-if-changed={}", root.join("kuma").display());
    let mut resolver = protox::file::ChainFileResolver::new();
    resolver.add(protox::file::IncludeFileResolver::new(root));
    resolver.add(protox::file::DescriptorSetFileResolver::new(envoy));
    resolver.add(protox::file::GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true);
    for file in ["kuma/mesh/v1alpha1/kds.proto", "kuma/mesh/v1alpha1/mesh.proto", "kuma/system/v1alpha1/system.proto"] {
        compiler.open_file(file).map_err(|e| format!("{file}: {e}"))?;
    }
    let compiled = compiler.file_descriptor_set();
    let is_service =
        |file: &FileDescriptorProto| !file.name().starts_with("kuma/") || file.name().ends_with("/kds.proto");
    let services = FileDescriptorSet { file: compiled.file.iter().filter(|file| is_service(file)).cloned().collect() };
    let generated = tonic_prost_build::configure()
        .out_dir(out)
        .emit_rerun_if_changed(false)
        .extern_path(".envoy", "::envoy_types::pb::envoy")
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .extern_path(".google.rpc", "::envoy_types::pb::google::rpc")
        .extern_path(".xds", "::envoy_types::pb::xds")
        .extern_path(".udpa", "::envoy_types::pb::udpa")
        .extern_path(".validate", "::envoy_types::pb::validate")
        .btree_map(".kuma")
        .compile_well_known_types(true)
        .compile_fds(services);
    generated.map_err(|e| format!("cannot generate the services of kds.proto: {e}"))?;
    Ok(compiled.file.into_iter().filter(|file| file.name().starts_with("kuma/")).collect())
}

/// Finds the descriptor set of exactly the `envoy-types` version that Cargo.lock names.
///
/// Looks into cargo's unpacked registry sources first, because that costs nothing, and asks `cargo metadata` when they
/// are elsewhere (vendored sources, a replaced registry).
fn descriptor_set() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os(OVERRIDE) {
        return Ok(PathBuf::from(path));
    }
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let lock = manifest_dir
        .ancestors()
        .map(|dir| dir.join("Cargo.lock"))
        .find(|path| path.is_file())
        .ok_or("no Cargo.lock above the package: run `cargo generate-lockfile` in the workspace")?;
    println!("cargo::rerun-if-changed={}", lock.display());
    let version = locked_version(&fs::read_to_string(&lock).map_err(|e| format!("{}: {e}", lock.display()))?)
        .ok_or_else(|| format!("{} does not name exactly one version of envoy-types", lock.display()))?;
    if let Some(path) = in_registry_sources(&version) {
        return Ok(path);
    }
    from_cargo_metadata(&manifest_dir, &version).ok_or_else(|| {
        format!(
            "the descriptor set {INSIDE_PACKAGE} of envoy-types {version} was found neither below \
             $CARGO_HOME/registry/src nor by `cargo metadata`. Run `cargo fetch --locked`, or set {OVERRIDE} to the \
             path of that file"
        )
    })
}

/// The version of `envoy-types` in a Cargo.lock, if there is exactly one.
fn locked_version(lock: &str) -> Option<String> {
    let mut lines = lock.lines();
    let mut found = None;
    while let Some(line) = lines.next() {
        if line == "name = \"envoy-types\"" {
            let version = lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')?;
            if found.replace(version.to_owned()).is_some() {
                return None;
            }
        }
    }
    found
}

fn in_registry_sources(version: &str) -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src")).ok()?;
    registries
        .flatten()
        .map(|registry| registry.path().join(format!("envoy-types-{version}")).join(INSIDE_PACKAGE))
        .find(|path| path.is_file())
}

/// Reads the package's place out of `cargo metadata`, offline first; the output is searched, not parsed, which saves a
/// JSON parser among the build dependencies.
fn from_cargo_metadata(manifest_dir: &Path, version: &str) -> Option<PathBuf> {
    let target = env::var("TARGET").ok()?;
    for network in [Some("--offline"), None] {
        let output = Command::new(env::var_os("CARGO")?)
            .current_dir(manifest_dir)
            .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &target])
            .args(network)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text
            .split("\"manifest_path\":\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .map(|path| PathBuf::from(path.replace("\\\\", "\\")))
            .filter_map(|manifest| Some(manifest.parent()?.to_owned()))
            .filter(|dir| {
                let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name == "envoy-types" || name == format!("envoy-types-{version}")
            })
            .map(|dir| dir.join(INSIDE_PACKAGE))
            .find(|path| path.is_file());
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Every message and enum of the set by full name, and the tables under construction.
struct Tables<'a> {
    messages: BTreeMap<String, (&'a DescriptorProto, bool)>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
    strings: Strings,
}

impl<'a> Tables<'a> {
    fn new(set: &'a FileDescriptorSet) -> Result<Self, String> {
        let mut tables = Tables { messages: BTreeMap::new(), enums: BTreeMap::new(), strings: Strings::default() };
        for file in &set.file {
            let proto3 = syntax_is_proto3(file)?;
            let package = file.package().to_owned();
            for message in &file.message_type {
                tables.add_message(&package, message, proto3);
            }
            for enumeration in &file.enum_type {
                tables.enums.insert(join(&package, enumeration.name()), enumeration);
            }
        }
        Ok(tables)
    }

    fn add_message(&mut self, scope: &str, message: &'a DescriptorProto, proto3: bool) {
        let name = join(scope, message.name());
        for nested in &message.nested_type {
            self.add_message(&name, nested, proto3);
        }
        for enumeration in &message.enum_type {
            self.enums.insert(join(&name, enumeration.name()), enumeration);
        }
        self.messages.insert(name, (message, proto3));
    }

    fn write(mut self, out: &Path) -> Result<(), String> {
        let messages = std::mem::take(&mut self.messages);
        let enums = std::mem::take(&mut self.enums);
        let message_index: HashMap<&str, usize> =
            messages.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let enum_index: HashMap<&str, usize> = enums.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();

        let (mut message_rows, mut field_rows, mut key_rows) = (Vec::new(), Vec::new(), Vec::new());
        for (name, (message, proto3)) in &messages {
            if name == "google.protobuf.FieldMask" {
                return Err(
                    "FieldMask has its own JSON form, which src/json does not have: no Envoy type used it".into()
                );
            }
            let mut fields: Vec<&FieldDescriptorProto> = message.field.iter().collect();
            fields.sort_by_key(|field| field.number());
            let first_field = field_rows.len() / 20;
            let first_key = key_rows.len() / 8;
            let mut keys = BTreeMap::new();
            for (i, field) in fields.iter().enumerate() {
                let context = |reason: &str| format!("{name}.{}: {reason}", field.name());
                let i = u16::try_from(i).map_err(|_| context("too many fields"))?;
                keys.insert(field.name().to_owned(), i);
                keys.entry(field.json_name().to_owned()).or_insert(i);
                let type_name = field.type_name().trim_start_matches('.');
                let (target, map) = match field.r#type() {
                    Type::Message => {
                        let index = message_index.get(type_name).ok_or_else(|| context("its message is missing"))?;
                        let entry = messages.get(type_name).is_some_and(|(m, _)| is_map_entry(m));
                        (*index, entry)
                    }
                    Type::Enum => (*enum_index.get(type_name).ok_or_else(|| context("its enum is missing"))?, false),
                    Type::Group => return Err(context("groups are not supported")),
                    _ => (0, false),
                };
                let oneof = match (field.oneof_index, field.proto3_optional()) {
                    (Some(index), false) => u8::try_from(index).map_err(|_| context("too many oneofs"))?,
                    _ => u8::MAX,
                };
                let repeated = field.label() == Label::Repeated;
                let scalar = !matches!(field.r#type(), Type::Message | Type::String | Type::Bytes);
                let packed = field.options.as_ref().and_then(|options| options.packed).unwrap_or(*proto3);
                let implicit = *proto3 && !repeated && field.oneof_index.is_none() && field.r#type() != Type::Message;
                let flags = u8::from(repeated && !map)
                    | u8::from(map) << 1
                    | u8::from(repeated && scalar && packed) << 2
                    | u8::from(implicit) << 3;
                push_u32(&mut field_rows, self.strings.add(field.name())?);
                push_u32(&mut field_rows, self.strings.add(field.json_name())?);
                push_u32(&mut field_rows, field.number().try_into().map_err(|_| context("negative number"))?);
                push_u16(&mut field_rows, target)?;
                let kind = u8::try_from(field.r#type() as i32).map_err(|_| context("unknown type"))?;
                field_rows.extend([kind, flags, oneof, 0, 0, 0]);
            }
            let key_count = keys.len();
            for (key, field) in keys {
                push_u32(&mut key_rows, self.strings.add(&key)?);
                push_u16(&mut key_rows, field.into())?;
                push_u16(&mut key_rows, 0)?;
            }
            push_u32(&mut message_rows, self.strings.add(name)?);
            push_u32(&mut message_rows, to_u32(first_field)?);
            push_u32(&mut message_rows, to_u32(first_key)?);
            push_u16(&mut message_rows, fields.len())?;
            push_u16(&mut message_rows, key_count)?;
            message_rows.extend([special(name), 0, 0, 0]);
        }

        let (mut enum_rows, mut value_rows) = (Vec::new(), Vec::new());
        for (name, enumeration) in &enums {
            push_u32(&mut enum_rows, self.strings.add(name)?);
            push_u32(&mut enum_rows, to_u32(value_rows.len() / 8)?);
            push_u32(&mut enum_rows, to_u32(enumeration.value.len())?);
            for value in &enumeration.value {
                push_u32(&mut value_rows, self.strings.add(value.name())?);
                value_rows.extend(value.number().to_le_bytes());
            }
        }

        for (file, content) in [
            ("messages.bin", &message_rows),
            ("fields.bin", &field_rows),
            ("keys.bin", &key_rows),
            ("enums.bin", &enum_rows),
            ("values.bin", &value_rows),
            ("strings.txt", &self.strings.text.into_bytes()),
        ] {
            let path = out.join(file);
            fs::write(&path, content).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }
}

/// One text with every name in it once; a name is referred to by offset (24 bits) and length (8 bits).
#[derive(Default)]
struct Strings {
    text: String,
    known: HashMap<String, u32>,
}

impl Strings {
    fn add(&mut self, name: &str) -> Result<u32, String> {
        if let Some(reference) = self.known.get(name) {
            return Ok(*reference);
        }
        let (offset, length) = (self.text.len(), name.len());
        if offset >= 1 << 24 || length >= 1 << 8 {
            return Err(format!("{name}: too long for a 24-bit offset and an 8-bit length"));
        }
        self.text.push_str(name);
        let reference = to_u32(offset << 8 | length)?;
        self.known.insert(name.to_owned(), reference);
        Ok(reference)
    }
}

/// How a message is written in JSON; the numbers are those of `schema::Special`.
fn special(name: &str) -> u8 {
    match name {
        "google.protobuf.Any" => 1,
        "google.protobuf.Duration" => 2,
        "google.protobuf.Timestamp" => 3,
        "google.protobuf.Struct" => 4,
        "google.protobuf.Value" => 5,
        "google.protobuf.ListValue" => 6,
        "google.protobuf.BoolValue"
        | "google.protobuf.BytesValue"
        | "google.protobuf.DoubleValue"
        | "google.protobuf.FloatValue"
        | "google.protobuf.Int32Value"
        | "google.protobuf.Int64Value"
        | "google.protobuf.StringValue"
        | "google.protobuf.UInt32Value"
        | "google.protobuf.UInt64Value" => 7,
        _ => 0,
    }
}

fn syntax_is_proto3(file: &FileDescriptorProto) -> Result<bool, String> {
    match file.syntax() {
        "proto3" => Ok(true),
        "proto2" | "" => Ok(false),
        other => Err(format!("{}: syntax {other} is not supported", file.name())),
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn to_u32(number: usize) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| format!("{number} does not fit into 32 bits"))
}

fn push_u32(row: &mut Vec<u8>, number: u32) {
    row.extend(number.to_le_bytes());
}

fn push_u16(row: &mut Vec<u8>, number: usize) -> Result<(), String> {
    let number = u16::try_from(number).map_err(|_| format!("{number} does not fit into 16 bits"))?;
    row.extend(number.to_le_bytes());
    Ok(())
}
