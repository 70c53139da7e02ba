"""One report, several faces: the table and the splats for people, JSON for programs. None of them judges."""
