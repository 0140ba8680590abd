//! The subject of a client certificate, as text that can be compared with the configuration.

use openssl::x509::X509NameRef;

use crate::names::CertificateSubject;

/// The subject of a certificate. An attribute whose name or value is not text becomes `#`, which never
/// equals a configured subject.
pub fn certificate_subject(name: &X509NameRef) -> CertificateSubject {
    let mut attributes: Vec<String> = name
        .entries()
        .map(|entry| {
            let attribute = entry.object().nid().short_name().unwrap_or("#");
            let value =
                entry.data().to_string().map_or("#".to_owned(), |value| escape_attribute_value(&value));
            format!("{attribute}={value}")
        })
        .collect();
    // RFC 2253 section 2.1: the last attribute of the certificate comes first.
    attributes.reverse();
    CertificateSubject::new(&attributes.join(","))
}

/// Escapes an attribute value as RFC 2253 section 2.4 says.
fn escape_attribute_value(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let is_special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
        if is_special || (i == 0 && matches!(c, '#' | ' ')) || (i == last && c == ' ') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_written_as_openssl_prints_it() {
        for (entries, expected) in [
            (&[("O", "Contoso"), ("CN", "team-a")][..], "CN=team-a,O=Contoso"),
            (&[("CN", "team-a,O=Contoso")], "CN=team-a\\,O=Contoso"),
            (&[("C", "DE"), ("O", "Zürich + Söhne"), ("CN", " x ")], "CN=\\ x\\ ,O=Zürich \\+ Söhne,C=DE"),
            (&[("CN", "#1")], "CN=\\#1"),
        ] {
            let mut name = openssl::x509::X509Name::builder().unwrap();
            for (attribute, value) in entries {
                name.append_entry_by_text(attribute, value).unwrap();
            }
            assert_eq!(certificate_subject(&name.build()).as_str(), expected);
        }
    }
}
