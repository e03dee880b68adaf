"""Personal data in captions: e-mail addresses, telephone numbers, payment cards, bank accounts, identity numbers.

A pattern finds candidates, and where the number has check digits they decide: one in ten strings of digits passes
Luhn's, so a card also needs a length and prefix that are issued. What is found is named by kind and never stored.
Telephone numbers have no check digit: only forms that are hardly anything else count (a + and a country, or the North
American groups with a bracket or two equal separators), so plain local numbers are missed. This is a tag, and no
claim that a caption without it is free of personal data.
"""

import re
from collections.abc import Callable

PII_KINDS = ("aadhaar", "cpf", "dni", "email", "iban", "payment_card", "phone", "resident_id", "ssn")
"""What is looked for: numbers of India, Brazil, Spain, China (resident_id) and the United States (ssn) among it."""

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}\s?(?:@|\(at\)|\[at\])\s?(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_PHONES = (
    re.compile(r"(?<![\w.+])\+[1-9](?:[ .\-/()]{0,2}\d){7,14}(?!\d)"),
    re.compile(r"(?<![\w.])(?:1[ .-])?\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}(?!\d)"),
    re.compile(r"(?<![\w.-])(?:1[ .-])?[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}(?![\d-])"),
)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_CPF = re.compile(r"(?<!\d)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)")
_DNI = re.compile(r"(?<![A-Za-z0-9])[XYZ\d]\d{7}[ -]?[A-HJ-NP-TV-Z](?![A-Za-z0-9])")
_RESIDENT = re.compile(
    r"(?<!\d)[1-8]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)"
)
_AADHAAR = re.compile(r"(?<!\d)[2-9]\d{3} \d{4} \d{4}(?!\d)")

# ISO/IEC 7812 prefixes and lengths that are issued: Visa, Mastercard, Amex, Discover, Diners, JCB, UnionPay, Maestro.
_CARD_PREFIXES = re.compile(
    r"(?:4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
    r"|(?:5018|5020|5038|6304|6759|676[1-3])\d{8,15})"
)
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "XK": 20,
}  # fmt: skip
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_RESIDENT_CHECKS = "10X98765432"
_WORTH_A_LOOK = re.compile(r"@|\(at\)|\[at\]|\d.*?\d.*?\d.*?\d.*?\d.*?\d.*?\d", re.DOTALL)
"""Most captions have no @ and fewer than 7 digits, and end here."""


def pii_kinds(text: str) -> list[str]:
    """Kinds of personal data in a caption, sorted, of PII_KINDS."""
    if not _WORTH_A_LOOK.search(text):
        return []
    found = {
        kind
        for kind, pattern, check in _CHECKED
        if any(check(match.group()) for match in pattern.finditer(text))
    }
    return sorted(found)


def _digits(text: str) -> list[int]:
    return [int(character) for character in text if character in "0123456789"]


def _is_card(text: str) -> bool:
    digits = _digits(text)
    if not _CARD_PREFIXES.fullmatch("".join(map(str, digits))) or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    bare = re.sub(r"[ -]", "", text)
    length = _IBAN_LENGTHS.get(bare[:2])
    if length is None or len(bare) < length:
        return False
    bare = bare[:length]  # the pattern may have run on into the next word
    return int("".join(str(int(character, 36)) for character in bare[4:] + bare[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    digits = _digits(text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


def _is_cpf(text: str) -> bool:
    digits = _digits(text)
    if len(set(digits)) == 1:
        return False
    for place in (9, 10):
        total = sum(digit * weight for digit, weight in zip(digits, range(place + 1, 1, -1), strict=False))
        if total * 10 % 11 % 10 != digits[place]:
            return False
    return True


def _is_dni(text: str) -> bool:
    bare = re.sub(r"[ -]", "", text)
    number = int(bare[:-1].translate(str.maketrans("XYZ", "012")))
    return _DNI_LETTERS[number % 23] == bare[-1]


def _is_resident_id(text: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(text[:17], _RESIDENT_WEIGHTS, strict=True))
    return _RESIDENT_CHECKS[total % 11] == text[17].upper()


def _is_aadhaar(text: str) -> bool:
    """Verhoeff's check: the digits as elements of the dihedral group of order 10, permuted by place, give 0."""
    total = 0
    for place, digit in enumerate(reversed(_digits(text))):
        for _ in range(place % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        total = _dihedral(total, digit)
    return total == 0


def _dihedral(a: int, b: int) -> int:
    """The product in the dihedral group of a pentagon: 0 to 4 turns, 5 to 9 reflections."""
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5


_CHECKED: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("aadhaar", _AADHAAR, _is_aadhaar),
    ("cpf", _CPF, _is_cpf),
    ("dni", _DNI, _is_dni),
    ("email", _EMAIL, lambda _: True),
    ("iban", _IBAN, _is_iban),
    ("payment_card", _CARD, _is_card),
    *(("phone", pattern, _is_phone) for pattern in _PHONES),
    ("resident_id", _RESIDENT, _is_resident_id),
    ("ssn", _SSN, lambda _: True),
)
