"""Small TIFF files by tifffile with imagecodecs, which the development environment does without.

The value of row y, column x and channel c is (29 x + 11 y + 50 c) mod 256, as bytes; greyscale is the first channel.
"""

from base64 import b85decode

SIZE = (9, 5)
TIFFS = {
    name: b85decode("".join(text.split()))
    for name, text in {
        "rgb16_lzw_differences_big_endian": r"""
            O-%qQ0000801g2F00aO40096100{vB00aO40096100jX800RI300RI30JZ@G00RI3009660003700RI3009630003I00aO4009610MG#
            y00RI3009640003N00aO40096100jXT00aO40096108arL00jU5009610K5Sk00jU5009610K@?t00RI3009620003f00RI300962000
            3!00RI300963000000000G01yBW0000100001000010000100000fB*mkA(4>C9fU$*P`G3^7#xQOVi15>EP6dRo8mFJj7}RKh6RGef<
            fr@9F#)j5~zrTLQ^TBP_mh%N)s!EO2vZ0@p&MSn#bd`I8+1
        """,
        "rgb16_packbits_planes": r"""
            Nl7XI2mk;84FCWE1ONd5000R9000321ONd5000F5000630{{a600620000940{{U4000Gm000I70{{U400062000pI1ON#D006K6000#
            M0{{U400093000&N1ONd500062000*O0{{sC007hg000^R1pom6008Cy000{S1pom6008a)000~T0{{U400062001Zf0{{U400031000
            00000mG5C9MW00961Bmn>bNC5x<S^)q6egOagq5%K^v;hDB*Z}|l`~d&}Bmg7;5&$FsBmfcsBmg7;5&!`J0003100031000310000000
            00000000{{a6T|2qFy|8)P6|E~Yb|LFe<|0w@O|6>1t|D6B1|JMKW{}%r<|4{#J|BC;o|HS{{|Nj3W|33d)|9JnE|FZwj|Lp$>|1AGW|
            7QP#|DgZ9|Jwie{}lf+|4;vH|B3&m|HJ>_|NZ|O|2_X&|9AhC|FQqh|Lgw<|0VxO|7HJz|DXT7|Jncc{}cZ(|5N{P|Be5u|HuF2{{jCV
            |2zL)|9k(K|F!?p|L^|{|0(}Q|78Dx|DON5|JeWa{}TT%|4jdH|BU~s|Hl90{{a6T|2qFy|9bzI|Fr+n|L*?_|0w@O|6>1z|DylD|J?u
            i{}%r<|4{#J|B(N!|H}X8{{;Ub|33d)|9A
        """,
        "rgb_float_deflate_differences": r"""
            Nl7XI2mk;84*&oG1ONd5000R9000321ONd5000F5000630{{a6006=O000940{{U4006Rp000I70{{U400062000pI1ONj70077U000#
            M0{{U400093000&N1ONd500062000*O0{{a6007hg000^R1pom6007zm000{S1pom60080u000~T0{{U400031001Zf0{{U400031002
            D!0{{U400093002_~0{{a6008O$00000001BWAOIi$@Bjb+jR61v7y<wQodAmfPyhh{000310003100031000930{{a6c${Ofv$JJjWM
            p7q0AUF64@CcCILO`gBFwVEO4iL#)=E}ZQx*uMWo6gM2FJ|!VesPGP6jL4V;ezID?w7TWo30_FW-^)Y4{R{l&zf|Ba$_Y3<nt)Y#IK6#
            6FrW_~4+IWhHB+2GS)bJ6Bfrh3wP@SrIqe2L>Mwta}BNS_YDu2Qm;S#ULwkY+s@ws+5eZ>`RCg0IQ=tjCh>0wX<Vn06`!C6aPRom?#X|
            Hpfai#6s3eR@Oik2oA~0evnnll3ihC6ks4@wfM>okkkga)S_3i8djSx8sd_&v$Ka=1GVc9BLfq|KSqY*8OKYkWbJf8x>P~B%w=Wf$QFb
            wsj(`tS`C!iw-zL|6eP7>c8-i}!IdR{tiJAEgG&kk8^}H1c$~Advu6MTMj!-&zYGja4F5n}Ao02GQj(Rdm6EKvED%V_%C^W}ERlU;r<q
            |TV6fm3P->Cvc97IeSy>ja)V`H3tON}g;*tUYpXneV
        """,
        "rgb_float_lzw_tiles_differences_big_endian": r"""
            O-%qQ0000801yEH00aO40096100{vB00aO40096100jX800RI300RI30L}pe00RI3009660003700RI3009630003M00RI3009640003
            R00jU5009610Mr2+00jU5009610Neo_00RI3009620003f00RI3009620003!00RI3009640003(00aO40096101yE~00aO40096101y
            F000aO4009610Pq1t00aO4009610xJPi00RI300RI30OSAw0000W03ZM$0000100001000010000100RI600RI300000fB*->;phMY0R
            Tc_5STPD0RDwTzzh}}3LO`WLx~KBL0EEt9S2Cm5bT6HDGtg*p}9)1I#Vtt1_p@C)*Q%=HJ2a>3mIc2l&WPx)ZC<49ci}%6FIdtlF4+=r
            -9k^06RjJQA4zPNL*fLrp-sNI7BWZ41_RYFjw`KCc=wYV*>-DdEh`78l)qkHCQ|yPRd;Y)T#hF6eA;Dg)5X{VD!5%70#>Lnyj9o;L@NB
            I~W>l#$#d27pr~YlFCVP(rmzTQt85H0*qi`tfQibSjX1uG&UI!hVU&n4a6~Eka{NvLNcJ@tT3Ulr7r;Jh}0ca4v<U%=N1#kdItweHlpI
            Ju;}!|swYr%P&xq+JH6$KMeE}7d8FQnS4cYQJ&$m70Egk*ynzS7`W)W3sDb!|07!Zeimomw2vY!~qCy`9s<29-hT!NpP6MNWs8SDs(cn
            r1&^ZWG5U|iXUlppcN}-nE={VO82BAoP2Sb1<7Q4hLPD4gfq-`8WQRICf4d9qd1E6qH(BB~^>JtdKNRR;vK;eOS2n<WuL=MC$P%@N|fa
            #(-1E(N-6paDUz&ZjDIbdEA2NL#C1F_0fOr;<s-8dYD@lte7)5H!~m!ypRlF$?qQ$ho@G~YPURA9b2f$%*=QPh<!O;gnsO;uIZm2F*D)
            )kFqS=N=UZClqB&2?SZmF<0B*cJ_iVc3=}jbqssO_gQYmTjG9+7^wZi=ZF
        """,
        "grey_float16_lzw_differences": r"""
            Nl7XI2mk;84gdfF1ONd5000R9000321ONd5000F5000630{{U4000mG000940{{U4000F5000I70{{U400031000pI1ONd5007Vc000#
            M0{{U400031000&N1ONd5000F5000*O1ONd5002+`000^R1pom6006cC000{S1pom6006!K001Zf0{{U400031002D!0{{U400093002
            _~0{{U4000930000000031000310003100031000000000000000fB*&HKoAH62LQ21-~n?;jOcW_MIeA28V~^`pULeeleQx17J)!u7_
            bBYOK>OJN7(zMVHJ{qU9ZI>xuhj@!~??_gqjZWEQ8uBX=xS$
        """,
        "rgb_12_bits": r"""
            Nl7XI2mk;84FCWE1ONd5000R9000321ONd5000F5000630{{a600620000940{{U400031000I70{{U400062000pI1ONd5006)M000#
            M0{{U400093000&N1ONd5000F5000*O1ONd5007MZ000^R1pom6006K6000{S1pom6006iE000~T0{{U400031001Zf0{{U400031000
            00000aC3;+xO0RR910RR910RR910RR9100SdrVbM=W7&<n_o|Scpi@S7sYS`Hs!_Qx?t_~6$y#4a>=;5JEKnnxYZ(@R4Sja_3cd4c(l$
            >mTdmH2F$<Dw4xxT&~9c>5$qx14oS5OudgnDx`Woda(SSYl%)}Ngnii^wc>U!DGu*A=AC@vlo6jc8617ctyB{hYE<8XQ^TUgk?w}+~&&
            6S*d`THy6;bG6f5Hmi`9u)-%1G8;lEG6ZTl$3jV+Gc5q%E&mizJ8#sEd&eO@8S~L(7--Fe<>xk6cl85Z~
        """,
        "grey_10_bits_white_is_zero": r"""
            Nl7XI2mk;83;+ND1ONd5000R9000321ONd5000F5000630{{U4000UA000940{{U400031000I70{{U400000000pI1ONd5006K6000#
            M0{{U400031000&N1ONd5000F5000*O1ONd5002Ay000^R1pom6005o<000{S1pom6005={001Zf0{{U400031000000003100031000
            310003100000|M<LKqKliA6wns{^!59yc7T}FWTXrL>GL}JN_AEfuy_Fg-tc-#9%@rl08IA4)9tC5@n2AqP$28T
        """,
    }.items()
}
