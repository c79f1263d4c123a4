@echo off
rem Installs jmedlite from this folder, without a network: install.bat [FOLDER]   (README.html says more)
setlocal
chcp 65001 >nul
set PYTHONUTF8=1
set PYTHONHOME=
set PYTHONPATH=
set PROBE=import sys; sys.exit(not sys.version.startswith('@PYTHON@.'))
for %%p in ("py -@PYTHON@" python python3) do (
    %%~p -c "%PROBE%" >nul 2>nul && (
        set FOUND=%%~p
        goto found
    )
)
echo Python @PYTHON@ (64 bits) was not found; install it, then run this again. README.html says how, in Japanese too.
pause
exit /b 69
:found
%FOUND% -B "%~dp0install.py" %*
set CODE=%ERRORLEVEL%
pause
exit /b %CODE%
