//! Whom a certificate is issued to, in a form that can be compared with what an operator writes.

use openssl::x509::X509NameRef;

use crate::names::CertificateSubject;

/// The subject of a certificate. Attributes that are no text are not comparable and read as `#`,
/// which stands in no configuration.
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
    attributes.reverse();
    CertificateSubject::new(&attributes.join(","))
}

/// RFC 2253 section 2.4.
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
