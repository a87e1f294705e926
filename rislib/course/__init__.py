"""The workshop behind the lessons.

    master      notebooks/src/NN_topic.py -> a Lesson and its Exercises
    build       Lesson -> student and solution notebook; is every notebook what its master says?
    answers     `check` and `hint`, as a student sees them
    show        a picture with its alt text, which a widget may change and which outlives the widget
    start       what the first cell of every notebook does
    runner      runs notebooks, and believes none that it did not see through to its end

How to write a lesson: notebooks/README.md. Only the standard library is imported here and by `start`, because
a notebook's first cell imports them before anything else is installed.
"""

from rislib.course.answers import check, hint
from rislib.course.show import show

__all__ = ["check", "hint", "show"]
