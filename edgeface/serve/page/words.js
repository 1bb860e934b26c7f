"use strict";

/* What the page says, by language. Each has the same keys; tests/unit/serve/test_door_page.py sees to it. */
const WORDS = {
  "en": {
    "called": "English", "dir": "ltr", "door": "Door", "key": "Key of this door", "keep": "Keep it until this tab is closed",
    "begin": "Begin", "leave": "Forget the key", "sound": "Sound", "language": "Language",
    "refused": "This key is not accepted.", "none": "No door is watched here.",
    "wait": "Look here", "wait-detail": "Stand before the camera.",
    "known": "Welcome", "known-detail": "You were recognised.",
    "unknown": "Not recognised", "unknown-detail": "Please ask for help.",
    "inconclusive": "Please try again", "inconclusive-detail": "Come closer and look straight into the camera.",
    "spoof": "Not accepted", "spoof-detail": "A photo or a screen was seen.",
    "closed": "Closed", "closed-detail": "The door cannot be watched now. Please ask for help."
  },
  "de": {
    "called": "Deutsch", "dir": "ltr", "door": "Tür", "key": "Schlüssel dieser Tür", "keep": "Behalten, bis dieser Tab geschlossen wird",
    "begin": "Beginnen", "leave": "Schlüssel vergessen", "sound": "Ton", "language": "Sprache",
    "refused": "Dieser Schlüssel wird nicht angenommen.", "none": "Hier wird keine Tür überwacht.",
    "wait": "Bitte hierher schauen", "wait-detail": "Stellen Sie sich vor die Kamera.",
    "known": "Willkommen", "known-detail": "Sie wurden erkannt.",
    "unknown": "Nicht erkannt", "unknown-detail": "Bitte fragen Sie nach Hilfe.",
    "inconclusive": "Bitte noch einmal", "inconclusive-detail": "Kommen Sie näher und schauen Sie gerade in die Kamera.",
    "spoof": "Nicht angenommen", "spoof-detail": "Ein Foto oder ein Bildschirm wurde gesehen.",
    "closed": "Geschlossen", "closed-detail": "Die Tür kann gerade nicht überwacht werden. Bitte fragen Sie nach Hilfe."
  },
  "fr": {
    "called": "Français", "dir": "ltr", "door": "Porte", "key": "Clé de cette porte", "keep": "La garder jusqu’à la fermeture de cet onglet",
    "begin": "Commencer", "leave": "Oublier la clé", "sound": "Son", "language": "Langue",
    "refused": "Cette clé n’est pas acceptée.", "none": "Aucune porte n’est surveillée ici.",
    "wait": "Regardez ici", "wait-detail": "Placez-vous devant la caméra.",
    "known": "Bienvenue", "known-detail": "Vous avez été reconnu.",
    "unknown": "Non reconnu", "unknown-detail": "Veuillez demander de l’aide.",
    "inconclusive": "Veuillez réessayer", "inconclusive-detail": "Approchez-vous et regardez la caméra bien en face.",
    "spoof": "Refusé", "spoof-detail": "Une photo ou un écran a été détecté.",
    "closed": "Fermé", "closed-detail": "La porte ne peut pas être surveillée. Veuillez demander de l’aide."
  },
  "es": {
    "called": "Español", "dir": "ltr", "door": "Puerta", "key": "Clave de esta puerta", "keep": "Guardarla hasta cerrar esta pestaña",
    "begin": "Empezar", "leave": "Olvidar la clave", "sound": "Sonido", "language": "Idioma",
    "refused": "Esta clave no se acepta.", "none": "Aquí no se vigila ninguna puerta.",
    "wait": "Mire aquí", "wait-detail": "Sitúese delante de la cámara.",
    "known": "Le damos la bienvenida", "known-detail": "Se le ha reconocido.",
    "unknown": "Sin reconocer", "unknown-detail": "Por favor, pida ayuda.",
    "inconclusive": "Inténtelo otra vez", "inconclusive-detail": "Acérquese y mire de frente a la cámara.",
    "spoof": "No aceptado", "spoof-detail": "Se ha visto una foto o una pantalla.",
    "closed": "Cerrado", "closed-detail": "La puerta no se puede vigilar ahora. Por favor, pida ayuda."
  },
  "pl": {
    "called": "Polski", "dir": "ltr", "door": "Drzwi", "key": "Klucz tych drzwi", "keep": "Zachowaj do zamknięcia tej karty",
    "begin": "Rozpocznij", "leave": "Zapomnij klucz", "sound": "Dźwięk", "language": "Język",
    "refused": "Ten klucz nie jest przyjmowany.", "none": "Tutaj żadne drzwi nie są obserwowane.",
    "wait": "Spójrz tutaj", "wait-detail": "Stań przed kamerą.",
    "known": "Witamy", "known-detail": "Rozpoznano.",
    "unknown": "Nie rozpoznano", "unknown-detail": "Poproś o pomoc.",
    "inconclusive": "Spróbuj ponownie", "inconclusive-detail": "Podejdź bliżej i spójrz prosto w kamerę.",
    "spoof": "Odmowa", "spoof-detail": "Zauważono zdjęcie lub ekran.",
    "closed": "Zamknięte", "closed-detail": "Drzwi nie są teraz obserwowane. Poproś o pomoc."
  },
  "ar": {
    "called": "العربية", "dir": "rtl", "door": "الباب", "key": "مفتاح هذا الباب", "keep": "الاحتفاظ به حتى إغلاق هذه الصفحة",
    "begin": "ابدأ", "leave": "نسيان المفتاح", "sound": "الصوت", "language": "اللغة",
    "refused": "هذا المفتاح غير مقبول.", "none": "لا يوجد باب مراقَب هنا.",
    "wait": "انظر هنا", "wait-detail": "قف أمام الكاميرا.",
    "known": "أهلاً وسهلاً", "known-detail": "تم التعرف عليك.",
    "unknown": "لم يتم التعرف عليك", "unknown-detail": "يرجى طلب المساعدة.",
    "inconclusive": "يرجى المحاولة مرة أخرى", "inconclusive-detail": "اقترب وانظر مباشرة إلى الكاميرا.",
    "spoof": "غير مقبول", "spoof-detail": "شوهدت صورة أو شاشة.",
    "closed": "مغلق", "closed-detail": "لا يمكن مراقبة الباب الآن. يرجى طلب المساعدة."
  }
};
